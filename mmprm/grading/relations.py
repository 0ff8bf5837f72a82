"""Compare equations and inequalities, by the value they assign to a quantity or by equivalence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from mmprm.grading.atoms import Expression
from mmprm.grading.equality import PRECISIONS, sample_points
from mmprm.grading.evaluation import evaluate_expression
from mmprm.grading.expressions import UnreadableError, parse
from mmprm.grading.expressions import symbols as free_symbols
from mmprm.grading.leaves import approximates
from mmprm.grading.numbers import number
from mmprm.grading.operations import UndefinedError
from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome, SymbolTest, all_of
from mmprm.grading.reading import Compound, Leaf, Reading, has_prose
from mmprm.grading.text import key

Same = Callable[[Reading, Reading], Outcome]

_OPPOSITE = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
_SYMMETRIC = {"=", r"\neq", r"\perp", r"\parallel", r"\sim", r"\cong", r"\approx", r"\equiv"}
_ORDER = set(_OPPOSITE)
_LETTER = r"(?:\\[a-zA-Z]+|[a-zA-Z])"
_SYMBOL = re.compile(rf"(?:\\(?:hat|vec|bar|overline)\s*\{{?)?{_LETTER}\}}?'*(?:_(?:\w|\{{[^{{}}]*\}}|\\[a-zA-Z]+))?'*")
_NAME = re.compile(
    rf"(?:m\s*)?(?:\\(?:angle|triangle|odot|Delta|overline|vec|hat|bar|text)\s*)?"
    rf"\{{?[A-Za-z][A-Za-z ]*\}}?'*(?:_(?:\w|\{{.*\}}|\\\w+))?(?:\s*\(.*\))?"
    rf"|\|.*\||{_SYMBOL.pattern}|\\frac\{{{_LETTER}+\}}\{{{_LETTER}+\}}|{_LETTER}\s*/\s*{_LETTER}|\\(?:sin|cos|tan)\s*.*|\\overline\{{.*\}}"
)


def states_value(relation: Reading) -> bool:
    """Return whether a relation states the value of its left side, as x = 5 and x ∈ (1,2) do but x + y = 5 does not. So
    does 2 + 3 = 5."""
    if not (isinstance(relation, Compound) and relation.kind == "relation"):
        return False
    marks = relation.marks
    while len(marks) > 1 and marks[0] == "=" and marks[-1] in _ORDER | {r"\neq"}:  # k = 5 > 0
        marks = marks[:-1]
    return (set(marks) <= {"=", r"\approx"} or marks == (r"\in",)) and (
        _is_name(relation.items[0]) or _is_number(relation.items[0])
    )


def stated_side(relation: Compound) -> Reading:
    """Return the value that a relation states: its last side, ignoring conditions and approximations."""
    last = len(relation.items) - 1
    while last > 1 and relation.marks[last - 1] in _ORDER | {r"\neq", r"\approx"}:
        last -= 1
    if (
        last == 1
        and relation.marks[0] == r"\approx"
        and not (isinstance(relation.items[0], Leaf) and _SYMBOL.fullmatch(relation.items[0].text))
    ):
        exact = _is_name(relation.items[0]) or approximates(relation.items[0].text, _text(relation.items[1]))
        return relation.items[1 if exact else 0]
    return relation.items[last - 1 if _rounds_side(relation, last) else last]


def _rounds_side(relation: Compound, last: int) -> bool:
    """Return whether the side with index `last` only approximates the side before it, as in 2 pi = 6.28."""
    one, other = relation.items[last - 1], relation.items[last]
    if not (isinstance(one, Leaf) and isinstance(other, Leaf)) or _SYMBOL.fullmatch(one.text):
        return False
    return number(one.text) != number(other.text) and approximates(other.text, one.text)


def _text(answer: Reading) -> str:
    return answer.text if isinstance(answer, Leaf) else ""


def same_relation(gold: Reading, given: Reading, symbols: SymbolTest, same: Same) -> Outcome:
    """Compare two answers, at least one of which is a relation."""
    gold_relation = isinstance(gold, Compound) and gold.kind == "relation"
    given_relation = isinstance(given, Compound) and given.kind == "relation"
    if not given_relation:
        return _relation_against_value(gold, given, same)
    if not gold_relation:
        return _value_against_relation(gold, given, same)
    return _same_relations(gold, given, symbols, same)


def _relation_against_value(gold: Compound, given: Reading, same: Same) -> Outcome:
    if states_value(gold) and not _is_number(gold.items[0]):
        outcome = same(stated_side(gold), given)
        return UNDECIDED if outcome is SAME and _text(gold.items[0]) in ("|x|", "|y|") else outcome
    return UNDECIDED if has_prose(given) else DIFFERENT


def _value_against_relation(gold: Reading, given: Compound, same: Same) -> Outcome:
    """Compare a gold value with a relation: 5 accepts x = 5, but not 2x = 5, x > 5 or x ≠ 5."""
    if _is_number(given.items[0]) and len(given.items) == 2 and given.marks == ("=",) and _is_name(given.items[1]):
        return same(gold, given.items[0])  # 5 = x
    if _is_false(given):
        return DIFFERENT
    if states_value(given) and not _is_equation(given.items[0]):
        return same(gold, stated_side(given))
    if isinstance(gold, Leaf) and not gold.prose:
        if set(given.marks) & (_ORDER | {r"\neq"}):
            return DIFFERENT
        names = _names(given.items[0])
        if names is not None and len(names) == 1:
            return DIFFERENT
    if has_prose(gold) or has_prose(given):
        return UNDECIDED
    return UNDECIDED if same(gold, given.items[-1]) is not DIFFERENT else DIFFERENT


def _is_false(relation: Compound) -> bool:
    """Return whether an equation between integers is false, such as 5 = 4."""
    values = [number(item.text) if isinstance(item, Leaf) and item.text.isdigit() else None for item in relation.items]
    return set(relation.marks) == {"="} and None not in values and len(set(values)) > 1


def _is_equation(left: Reading) -> bool:
    """Return whether a left side is an expression to solve, as in xy = 4 or |x| = 4, rather than the name of a
    quantity."""
    return isinstance(left, Leaf) and bool(re.fullmatch(r"[a-z]{2}|[a-d]{3}|[x-z]{3}|\|[xy]\|", left.text))


def _names(side: Reading) -> frozenset[str] | None:
    try:
        return free_symbols(parse(side.text)) if isinstance(side, Leaf) else None
    except UnreadableError:
        return None


def _same_relations(gold: Compound, given: Compound, symbols: SymbolTest, same: Same) -> Outcome:
    if gold == given or flipped(given) == gold:
        return SAME
    for form in (given, flipped(given)):
        if form is not None and form.marks == gold.marks and len(form.items) == len(gold.items):
            outcomes = [same(a, b) for a, b in zip(gold.items, form.items, strict=True)]
            if all_of(outcomes) is SAME or (outcomes[0] is SAME and states_value(gold)):
                return all_of(outcomes)  # if the left sides are equal, the right sides decide
    if set(gold.marks + given.marks) & {r"\perp", r"\parallel", r"\sim", r"\cong", r"\to", r"\equiv"}:
        return DIFFERENT
    if states_value(gold) and states_value(given) and not _is_number(gold.items[0]):
        return _same_stated(gold, given, same)
    if len(gold.items) == len(given.items) == 2:
        outcome = equivalent(gold, given)
        return symbols(_written(gold), _written(given)) if outcome is None else outcome
    return DIFFERENT


def _same_stated(gold: Compound, given: Compound, same: Same) -> Outcome:
    """Compare two relations that each state a value, by the value and by the name of the quantity.

    x = 5 and y = 5 differ; S = 24 and Area = 24 are the same, as are y = 2x and f(x) = 2x.
    """
    value = same(stated_side(gold), stated_side(given))
    one, other = gold.items[0], given.items[0]
    if value is not SAME:
        equal = equivalent(gold, given) if len(gold.items) == len(given.items) == 2 else None
        return SAME if equal is SAME else value
    if _is_number(other):
        return SAME if not isinstance(other, Leaf) or number(other.text) is None else DIFFERENT
    texts = [key(side.text) if isinstance(side, Leaf) else "" for side in (one, other)]
    if texts[0] == texts[1]:
        return SAME
    if all(_SYMBOL.fullmatch(text) for text in texts):
        return SAME if _bare(texts[0]) == _bare(texts[1]) else DIFFERENT
    if any(text == "y" for text in texts) and any(re.fullmatch(r"[a-zA-Z]\(\w\)", text) for text in texts):
        return SAME
    wordy = [bool(re.search(r"[a-zA-Z]{3,}", re.sub(r"\\[a-zA-Z]+", "", text))) for text in texts]
    return SAME if any(wordy) else UNDECIDED if same(one, other) is not SAME else SAME


def _bare(name: str) -> str:
    """Return a name without accents: y for ŷ."""
    return re.sub(r"\\(?:hat|vec)\s*|[{}]", "", name)


def _is_name(answer: Reading) -> bool:
    r"""Return whether an answer is the name of a quantity: x, f(x), \angle A, |AB|, P(A \cap B), (x,y)."""
    if isinstance(answer, Compound):
        return all(_is_name(item) for item in answer.items)
    text = answer.text
    if not text or re.match(r"[-+\d]", text):
        return False
    names = _names(answer)
    if names and len(names) == 1 and not _NAME.fullmatch(text):
        return False
    return bool(_NAME.fullmatch(text)) and not re.fullmatch(r"[a-zA-Z]\s*\^.*|\\sqrt.*", text)


def _is_number(answer: Reading) -> bool:
    """Return whether an answer is a calculation without symbols, such as the left side of 2 + 3 = 5."""
    names = _names(answer)
    return names is not None and not names


def flipped(relation: Compound) -> Compound | None:
    """Swap the sides of a relation (b > a for a < b), or return None if an operator cannot be reversed."""
    if not all(mark in _OPPOSITE or mark in _SYMMETRIC for mark in relation.marks):
        return None
    marks = tuple(_OPPOSITE.get(mark, mark) for mark in reversed(relation.marks))
    return Compound("relation", relation.items[::-1], marks)


def _written(relation: Compound) -> str:
    sides = [item.text if isinstance(item, Leaf) else "" for item in relation.items]
    return f" {relation.marks[0]} ".join(sides) if all(sides) else ""


def equivalent(gold: Compound, given: Compound) -> Outcome | None:
    """Compare two equations or inequalities by their differences, or return None if a side cannot be parsed.

    The difference is the left side minus the right side. The relations are the same if their differences have a
    constant ratio. For inequalities, it must be positive, or negative with the signs reversed. Equations are also the
    same if both are linear in a symbol and have the same solution for it.
    """
    try:
        one, other = _difference(gold), _difference(given)
    except UnreadableError:
        return None
    # `turned`: the signs point in opposite directions, which matches a negative ratio of the differences.
    equations = gold.marks == given.marks == ("=",)
    turned = given.marks[0] == _OPPOSITE.get(gold.marks[0], gold.marks[0]) and given.marks != gold.marks
    if not (gold.marks == given.marks or turned) or not (
        equations or gold.marks[0] in _ORDER or gold.marks == (r"\neq",)
    ):
        return DIFFERENT
    names = sorted(free_symbols(one) | free_symbols(other))
    if free_symbols(one) != free_symbols(other):
        return DIFFERENT
    ratio = _constant_ratio(one, other, names)
    if ratio is not None:
        return SAME if equations or gold.marks == (r"\neq",) or (ratio < 0) == turned else DIFFERENT
    if not equations:
        return DIFFERENT
    return SAME if _implies(one, other, names) and _implies(other, one, names) else DIFFERENT


def _difference(relation: Compound) -> Expression:
    if not all(isinstance(item, Leaf) and not item.prose for item in relation.items):
        raise UnreadableError("a side is not an expression")
    left, right = (parse(item.text) for item in relation.items)
    return ("add", left, ("negative", right))


def _constant_ratio(one: Expression, other: Expression, names: Sequence[str]) -> float | None:
    ratios = []
    for point in sample_points(names):  # a ratio that is equal at three or more points without a pattern is constant
        try:
            a, b = (evaluate_expression(node, point, PRECISIONS[0]) for node in (one, other))
            if not a and not b:
                continue
            ratios.append(a / b)
        except (UndefinedError, ZeroDivisionError):
            continue
    if len(ratios) < 3 or not ratios[0]:
        return None
    if any(abs(ratio / ratios[0] - 1) > 1e-30 for ratio in ratios[1:]):
        return None
    first = ratios[0]
    return float(getattr(first, "real", first)) if abs(getattr(first, "imag", 0)) < 1e-30 else None


def _implies(one: Expression, other: Expression, names: Sequence[str]) -> bool:
    """Return whether the solution of `one` for a symbol also satisfies the equation `other`."""
    return any(_vanishes_at_roots(one, other, name, names) for name in names)


def _vanishes_at_roots(one: Expression, other: Expression, name: str, names: Sequence[str]) -> bool:
    fulfilled = 0
    for point in sample_points(names):
        try:
            root = _root(one, name, point)
            if root is None:
                return False
            # `near`, a value of the other equation away from the root, is the scale for testing `value` for zero.
            value, near = (
                evaluate_expression(other, {**point, name: at}, PRECISIONS[0]) for at in (root, root * 2 + 1)
            )
        except (UndefinedError, ZeroDivisionError):
            continue
        if abs(value) > 1e-30 * abs(near):
            return False
        fulfilled += 1
    return fulfilled >= 3


def _root(node: Expression, name: str, point: dict) -> object | None:
    """Return the root of an expression that is linear in the symbol `name`, or None if it is not linear."""
    # Three values at equal distances: the second difference of a linear expression is zero.
    zero, first, second = (
        evaluate_expression(node, {**point, name: value}, PRECISIONS[0]) for value in map(Fraction, (3, 4, 5))
    )
    slope = first - zero
    if not slope or abs(second - 2 * first + zero) > 1e-30 * abs(slope):
        return None
    return 3 - zero / slope
