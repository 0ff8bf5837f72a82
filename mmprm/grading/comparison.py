"""Whether two answers are the same, decided by structure first and by a given test for single values."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence

from mmprm.grading.numbers import is_decimal, number, rounds_to
from mmprm.grading.reading import Answer, Group, Leaf, has_prose, is_based, read, serial_reading
from mmprm.grading.text import key


class Outcome(enum.Enum):
    SAME = "same value"
    DIFFERENT = "different value"
    UNDECIDED = "symbols cannot decide"


SAME, DIFFERENT, UNDECIDED = Outcome.SAME, Outcome.DIFFERENT, Outcome.UNDECIDED

SymbolTest = Callable[[str, str], Outcome]
"""Compares two expressions, or two equations or inequalities, gold first."""

_ORDERED = {"blanks", "brackets", "ratio"}
_OPPOSITE = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
_OPEN_FORM = re.compile(r"\\text|\\begin|\\mathbb|\\emptyset|\\varnothing|[<>=∅]|\\pm|[?]")
"""What may stand for a list, a set or a condition."""
_NAME = re.compile(
    r"(?:\\[a-zA-Z]+\s*)?\{?[A-Za-z]{0,4}'*\}?(?:_\{?\w+\}?)?(?:\s*\(\s*\w\s*\))?(?:\\text\{[^{}]*\})?|\|?\\vec\s*\{\w+\}\|?"
)
_SIGN = re.compile(r"[=<>]|\\(?:leq|geq|neq|perp|parallel|sim|cong|approx|in)")
_NUMERIC_COMMAND = re.compile(r"\\(?:frac|sqrt|times|cdot|pi)(?![a-zA-Z])")


def compare(gold: str, answer: str, symbols: SymbolTest) -> Outcome:
    """Compare two answers as written; `symbols` is asked only for what text, structure and arithmetic leave open."""
    if key(gold) == key(answer):
        return SAME
    if (outcome := _yes_or_no(gold, answer)) is not None:
        return outcome
    given = read(answer)
    readings = [reading for reading in (read(gold), serial_reading(gold)) if reading]
    outcomes = [_same(reading, given, symbols) for reading in readings]
    return SAME if SAME in outcomes else outcomes[0]


def _same(gold: Answer, given: Answer, symbols: SymbolTest) -> Outcome:
    if isinstance(gold, Leaf) and isinstance(given, Leaf):
        return _same_leaf(gold, given, symbols)
    if has_prose(gold) and not (isinstance(gold, Group) and isinstance(given, Group) and gold.kind == given.kind):
        return UNDECIDED
    gold_kind, given_kind = (answer.kind if isinstance(answer, Group) else "leaf" for answer in (gold, given))
    if "relation" in (gold_kind, given_kind):
        return _same_relation(gold, given, symbols)
    if isinstance(gold, Group) and isinstance(given, Group):
        return _same_group(gold, given, symbols)
    if "ratio" in (gold_kind, given_kind):
        return _ratio_against_value(gold, given, symbols)
    return DIFFERENT if _is_plain(gold) else UNDECIDED


def _same_group(gold: Group, given: Group, symbols: SymbolTest) -> Outcome:
    if len(gold.items) != len(given.items):
        return DIFFERENT if not has_prose(gold) else UNDECIDED
    one_named = _has_distinct_names(gold) != _has_distinct_names(given)  # x=1, y=2 against 1, 2: by place
    if gold.kind in _ORDERED or given.kind == "brackets" or one_named:
        if gold.kind == given.kind == "ratio" and (proportional := _proportional(gold, given)) is not None:
            return proportional
        outcome = _all(_same(a, b, symbols) for a, b in zip(gold.items, given.items, strict=True))
    else:
        outcome = _same_multiset(gold.items, given.items, symbols)
    if outcome is SAME and not _same_form(gold, given):
        # (1,2) against [1,2] is another interval; longer tuples may be written with either bracket.
        intervals = gold.kind == given.kind == "brackets" and len(gold.items) == 2 and gold.marks != given.marks
        return DIFFERENT if intervals else UNDECIDED
    return outcome


def _same_form(gold: Group, given: Group) -> bool:
    """Bare lists stand for each other and for sets; brackets, unions and ratios only for their own kind."""
    loose = {"blanks", "list", "set"}
    named_apart = gold.name and given.name and gold.name != given.name
    return (
        ({gold.kind, given.kind} <= loose or gold.kind == given.kind) and gold.marks == given.marks and not named_apart
    )


def _has_distinct_names(group: Group) -> bool:
    names = [item.items[0] for item in group.items if isinstance(item, Group) and item.kind == "relation"]
    return len(set(names)) > 1


def _same_multiset(gold: Sequence[Answer], given: Sequence[Answer], symbols: SymbolTest) -> Outcome:
    left = list(given)
    leftover: list[Answer] = []
    for item in gold:
        match = next((i for i, other in enumerate(left) if _same(item, other, symbols) is SAME), None)
        if match is None:
            leftover.append(item)
        else:
            left.pop(match)
    undecided = any(_same(a, b, symbols) is UNDECIDED for a in leftover for b in left)
    return SAME if not leftover else UNDECIDED if undecided else DIFFERENT


def _same_relation(gold: Answer, given: Answer, symbols: SymbolTest) -> Outcome:
    gold_relation = isinstance(gold, Group) and gold.kind == "relation"
    given_relation = isinstance(given, Group) and given.kind == "relation"
    if not given_relation:
        if _states_value(gold):
            return _same(gold.items[-1], given, symbols)
        return DIFFERENT if isinstance(given, Leaf) and number(given.text) is not None else UNDECIDED
    if not gold_relation:
        return _same(gold, given.items[-1], symbols) if _states_value(given) else UNDECIDED
    if _flip(given) == gold or gold == given:
        return SAME
    for form in (given, _flip(given)):
        if form is not None and form.marks == gold.marks and len(form.items) == len(gold.items):
            pairs = list(zip(gold.items, form.items, strict=True))
            outcomes = [_same(a, b, symbols) for a, b in pairs]
            if _all(outcomes) is SAME or (outcomes[0] is SAME and _states_value(gold)):
                return _all(outcomes)  # with the same left side, the right side decides
    if _states_value(gold) and _states_value(given) and _same(gold.items[-1], given.items[-1], symbols) is SAME:
        return SAME if _same(gold.items[0], given.items[0], symbols) is SAME else UNDECIDED  # or another name
    return symbols(_written(gold), _written(given)) if len(gold.items) == len(given.items) == 2 else DIFFERENT


def _states_value(relation: Group) -> bool:
    """x = 5, 2 + 3 = 5 and x ∈ (1,2) say what follows the last sign; x + y = 5 does not."""
    return (set(relation.marks) <= {"=", r"\approx"} or relation.marks == (r"\in",)) and _is_name(relation.items[0])


def _is_name(answer: Answer) -> bool:
    r"""x, f(x), \angle A, (x,y), and numbers, which can only be a calculation."""
    if isinstance(answer, Group):
        return all(_is_name(item) for item in answer.items)
    return bool(_NAME.fullmatch(answer.text)) or not re.search(r"[A-Za-z]", _NUMERIC_COMMAND.sub("", answer.text))


def _flip(relation: Group) -> Group | None:
    """b > a for a < b."""
    if not all(mark in _OPPOSITE or mark in ("=", r"\neq", r"\perp", r"\parallel") for mark in relation.marks):
        return None
    marks = tuple(_OPPOSITE.get(mark, mark) for mark in reversed(relation.marks))
    return Group("relation", relation.items[::-1], marks)


def _written(relation: Group) -> str:
    sides = [item.text if isinstance(item, Leaf) else "" for item in relation.items]
    return f" {relation.marks[0]} ".join(sides) if all(sides) else ""


def _proportional(gold: Group, given: Group) -> Outcome | None:
    """None unless both consist of numbers other than 0. 3:20 could be a time, which 6:40 is not."""
    values = [[number(i.text) if isinstance(i, Leaf) else None for i in group.items] for group in (gold, given)]
    if not all(values[0]) or not all(values[1]):
        return None
    (first, *_), (other, *_) = values
    if any(a * other != b * first for a, b in zip(*values, strict=True)):
        return DIFFERENT
    clock = all(len(group.items) == 2 and len(group.items[1].text) == 2 for group in (gold, given))
    return UNDECIDED if clock and values[0] != values[1] else SAME


def _ratio_against_value(gold: Answer, given: Answer, symbols: SymbolTest) -> Outcome:
    """2:3 against 2/3 may or may not be meant the same; another value is wrong either way."""
    ratio, value = (gold, given) if isinstance(gold, Group) else (given, gold)
    if len(ratio.items) != 2 or not all(isinstance(item, Leaf) for item in ratio.items):
        return DIFFERENT
    top, bottom = (item.text for item in ratio.items)
    return DIFFERENT if _same_leaf(Leaf(rf"\frac{{{top}}}{{{bottom}}}"), value, symbols) is DIFFERENT else UNDECIDED


def _same_leaf(gold: Leaf, given: Leaf, symbols: SymbolTest) -> Outcome:
    if key(gold.text) == key(given.text) and gold.text:
        return SAME if _units_agree(gold, given) else UNDECIDED
    if _SIGN.fullmatch(gold.text):
        return DIFFERENT if _SIGN.fullmatch(given.text) or number(given.text) is not None else UNDECIDED
    if gold.prose or not gold.text:
        return UNDECIDED
    if given.prose or not given.text:
        return UNDECIDED if _mentions(given.text, gold.text) else DIFFERENT
    if is_based(gold.text) or is_based(given.text):
        digits = {re.sub(r"_.*", "", leaf.text) for leaf in (gold, given)}
        one_sided = is_based(gold.text) != is_based(given.text)
        return UNDECIDED if one_sided and len(digits) == 1 else DIFFERENT
    outcome = _same_number(gold.text, given.text)
    if outcome is None:
        if re.search(r"\d\s*_|\\text|\d \d", gold.text + "|" + given.text):
            return UNDECIDED  # math-verify drops such subscripts and texts, and adds up neighbouring numbers
        outcome = symbols(gold.text, given.text)
    return outcome if _units_agree(gold, given) else UNDECIDED


def _same_number(gold: str, given: str) -> Outcome | None:
    """Exact arithmetic; None when one of the two is no plain number."""
    gold_percent, given_percent = gold.endswith("%"), given.endswith("%")
    gold_value, given_value = number(gold.rstrip("%")), number(given.rstrip("%"))
    if gold_value is None or given_value is None:
        return None
    if gold_value == given_value:
        return SAME
    if gold_percent != given_percent:
        scaled = (gold_value / 100, given_value) if gold_percent else (gold_value, given_value / 100)
        return SAME if scaled[0] == scaled[1] else DIFFERENT
    return SAME if not is_decimal(gold) and rounds_to(gold_value, given) else DIFFERENT


def _yes_or_no(gold: str, answer: str) -> Outcome | None:
    """A gold yes or no (true or false) against the first word of the answer."""
    gold, first_word = key(gold), re.match(r"\w*", key(answer))[0]
    for pair in ({"yes", "no"}, {"true", "false"}):
        if gold in pair and first_word in pair:
            return SAME if gold == first_word else DIFFERENT
    return None


def _mentions(prose: str, value: str) -> bool:
    return bool(re.search(rf"(?<![\w.]){re.escape(value)}(?![\w]|\.\d)", prose))


def _units_agree(gold: Leaf, given: Leaf) -> bool:
    return not gold.unit or not given.unit or gold.unit == given.unit


def _is_plain(answer: Answer) -> bool:
    """Whether it consists of numbers and formulas only, so that an answer of another form cannot be the same."""
    if isinstance(answer, Group):
        return all(_is_plain(item) for item in answer.items)
    return bool(answer.text) and not answer.prose and not _OPEN_FORM.search(answer.text)


def _all(outcomes: Sequence[Outcome]) -> Outcome:
    outcomes = list(outcomes)
    return DIFFERENT if DIFFERENT in outcomes else UNDECIDED if UNDECIDED in outcomes else SAME
