"""Compare two parsed answers recursively, down to single values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from mmprm.grading import realsets
from mmprm.grading.leaves import approximates, same_expression, same_leaf
from mmprm.grading.numbers import number
from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome, SymbolTest, all_of
from mmprm.grading.reading import Compound, Leaf, Reading, flattened, has_prose
from mmprm.grading.relations import same_relation
from mmprm.grading.text import key

_REALS_OR_NONE = re.compile(r"\\(?:emptyset|mathbb)|no\b|all\b")
MAX_REPETITIVE = 30
"""Maximum length of a list that is searched for repeated values."""
_OPEN_FORM = re.compile(r"\\text|\\begin|\\mathbb|\\emptyset|[<>=]|\\pm|[?]")
"""Matches text that may represent a list, a set or a condition."""


def same_structure(gold: Reading, given: Reading, symbols: SymbolTest) -> Outcome:
    """Compare a parsed gold answer with a parsed answer."""
    gold, given = _unnamed(_single(gold)), _unnamed(_single(given))
    given = _without_repetition(gold, given)
    if isinstance(gold, Compound) and gold.marks == ("or",):  # 9/2 or 4.5
        gold = _without_repetition(given, gold)
    if isinstance(gold, Leaf) and isinstance(given, Leaf):
        return _same_named_set(gold, given) or same_leaf(gold, given, symbols)
    if (outcome := _same_set(gold, given, symbols)) is not None:
        return outcome
    kinds = [answer.kind if isinstance(answer, Compound) else "leaf" for answer in (gold, given)]
    if kinds[0] == "blanks" and kinds[1] in ("list", "blanks"):
        return _same_blanks(gold, given, symbols)
    if "matrix" in kinds or (kinds == ["brackets", "leaf"] and _entries(given) is not None):
        return _same_matrix(gold, given, symbols)
    if has_prose(gold) and kinds[0] != kinds[1]:
        return DIFFERENT if kinds[0] == "blanks" and not has_prose(given) else UNDECIDED
    if "relation" in kinds and not _is_collection(given) and not _is_collection(gold):
        return same_relation(gold, given, symbols, partial(same_structure, symbols=symbols))
    if isinstance(gold, Compound) and isinstance(given, Compound):
        return _same_group(gold, given, symbols)
    if "ratio" in kinds:
        return _ratio_against_value(gold, given, symbols)
    return DIFFERENT if is_plain(gold) else UNDECIDED


def _is_collection(answer: Reading) -> bool:
    return isinstance(answer, Compound) and answer.kind in ("list", "blanks", "cases", "matrix")


def _single(answer: Reading) -> Reading:
    """Unwrap a set with one element: {5} and x in {5} become 5."""
    if isinstance(answer, Compound) and answer.kind == "set" and len(answer.items) == 1:
        return answer if realsets.is_explicit(answer.items[0]) else answer.items[0]
    if isinstance(answer, Compound) and answer.kind == "builder":
        return _listed_values(answer)
    if isinstance(answer, Compound) and answer.marks == (r"\in",) and isinstance(answer.items[1], Compound):
        return _single(answer.items[1]) if answer.items[1].kind == "set" else answer
    return answer


def _listed_values(builder: Compound) -> Reading:
    """Convert a set-builder form that lists values to a set: {x | x=1 or x=2} becomes {1, 2}."""
    condition = builder.items[0]
    equations = condition.items if isinstance(condition, Compound) and condition.kind == "list" else (condition,)
    if all(
        isinstance(each, Compound) and each.marks == ("=",) and each.items[0] == Leaf(builder.name)
        for each in equations
    ):
        return _single(Compound("set", tuple(each.items[1] for each in equations)))
    return builder


def _unnamed(answer: Reading) -> Reading:
    """Strip the name from a matrix or a function defined by cases, as in A = …; return other answers unchanged."""
    last = answer.items[-1] if isinstance(answer, Compound) and set(answer.marks) == {"="} else None
    return last if isinstance(last, Compound) and last.kind in ("matrix", "cases") else answer


def _without_repetition(gold: Reading, given: Reading) -> Reading:
    """Drop list items that repeat an earlier one exactly or as a decimal approximation, as in 1/3 or 0.333."""
    if not (isinstance(given, Compound) and given.kind == "list"):
        return given
    if isinstance(gold, Compound) and gold.kind != "relation" and len(gold.items) >= len(given.items):
        return given
    if len(given.items) > MAX_REPETITIVE:
        return given
    kept: list[Reading] = []
    for item in given.items:
        if not any(_repeats(item, other) for other in kept):
            kept.append(item)
    return kept[0] if len(kept) == 1 else replace(given, items=tuple(kept))


def _repeats(item: Reading, other: Reading) -> bool:
    if not (isinstance(item, Leaf) and isinstance(other, Leaf)):
        return item == other
    value = number(item.text)
    if item == other or (value is not None and value == number(other.text)):
        return True
    if (
        item.text.endswith("%")
        and (share := number(item.text.rstrip("% "))) is not None
        and share / 100 == number(other.text)
    ):
        return True
    return approximates(item.text, other.text)


def _same_named_set(gold: Leaf, given: Leaf) -> Outcome | None:
    """Compare sets named in words or symbols, such as R and "all real numbers", or return None for other answers."""
    one, other = realsets.real_set(gold), realsets.real_set(given)
    if one is None or other is None:
        set_and_value = (one is None) != (other is None) and not gold.prose and not given.prose
        return DIFFERENT if set_and_value and _REALS_OR_NONE.match((given if one is None else gold).text) else None
    return SAME if one == other else DIFFERENT


def _same_set(gold: Reading, given: Reading, symbols: SymbolTest) -> Outcome | None:
    """Compare answers as sets of real numbers if one is clearly a set, or return None if that is inconclusive."""
    if not (realsets.is_explicit(gold) or realsets.is_explicit(given)):
        return None
    if any(isinstance(answer, Compound) and answer.kind == "matrix" for answer in (gold, given)):
        return None
    one, other = realsets.real_set(gold), realsets.real_set(given)
    if one is None and other is None:
        return None
    if one is None or other is None:
        plain = given if one is not None else gold
        if isinstance(plain, Compound) and plain.kind == "set":
            return DIFFERENT
        return DIFFERENT if _is_listed(plain) else None
    # Two pairs in equal brackets may be intervals or points: their parts decide either way.
    both_brackets = isinstance(gold, Compound) and isinstance(given, Compound) and gold.kind == given.kind == "brackets"
    if both_brackets and gold.marks == given.marks:
        return None
    return realsets.same_set(one, other, lambda a, b: same_expression(a, b, symbols))


def _is_listed(answer: Reading) -> bool:
    """Return whether an answer only lists numbers, and therefore cannot equal an interval."""
    if isinstance(answer, Leaf):
        return number(answer.text) is not None
    return answer.kind in ("list", "blanks", "ratio", "matrix") and all(map(_is_listed, answer.items))


def _same_blanks(gold: Compound, given: Compound, symbols: SymbolTest) -> Outcome:
    """Compare multi-part answers part by part, in order. Commas may separate parts as well as list items within a
    part."""
    if len(gold.items) == len(given.items):
        outcome = _in_order(gold.items, given.items, symbols)
        if outcome is not DIFFERENT:
            return outcome
    one, other = flattened(gold), flattened(given)
    if len(one) != len(other):
        return DIFFERENT
    outcome = _in_order(one, other, symbols)
    return outcome if outcome is not UNDECIDED or not _is_permuted(one, other) else DIFFERENT


def _in_order(gold: Sequence[Reading], given: Sequence[Reading], symbols: SymbolTest) -> Outcome:
    outcome = all_of(same_structure(a, b, symbols) for a, b in zip(gold, given, strict=True))
    return DIFFERENT if outcome is UNDECIDED and _is_permuted(gold, given) else outcome


def _is_permuted(gold: Sequence[Reading], given: Sequence[Reading]) -> bool:
    texts = [[key(item.text) if isinstance(item, Leaf) else repr(item) for item in items] for items in (gold, given)]
    return texts[0] != texts[1] and sorted(texts[0]) == sorted(texts[1])


def _same_matrix(gold: Reading, given: Reading, symbols: SymbolTest) -> Outcome:
    """Compare matrices entry by entry. Tuples count as rows or columns, and binomials as columns of two entries."""
    rows = [_rows(answer) for answer in (gold, given)]
    if None in rows:
        one, other = (_entries(answer) for answer in (gold, given))
        if one is None or other is None:
            return UNDECIDED if has_prose(gold) or has_prose(given) else DIFFERENT
        rows = [[one], [other]]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return DIFFERENT
    gold_cells = [cell for row in rows[0] for cell in row]
    given_cells = [cell for row in rows[1] for cell in row]
    return all_of(same_structure(a, b, symbols) for a, b in zip(gold_cells, given_cells, strict=True))


def _rows(answer: Reading) -> list[list[Reading]] | None:
    if isinstance(answer, Compound) and answer.kind == "matrix":
        return [list(row.items) for row in answer.items]
    if (
        isinstance(answer, Compound)
        and answer.kind == "brackets"
        and all(isinstance(i, Compound) and i.kind == "brackets" for i in answer.items)
    ):
        return [list(row.items) for row in answer.items]
    return None


def _entries(answer: Reading) -> list[Reading] | None:
    """Return the entries of a row, column or tuple, or None for other answers."""
    if isinstance(answer, Leaf):
        match = re.fullmatch(r"\\[dt]?binom\{([^{}]*)\}\{([^{}]*)\}", answer.text)
        return [Leaf(match[1]), Leaf(match[2])] if match else None
    if answer.kind == "brackets":
        return list(answer.items) if answer.marks in (("()",), ("[]",)) else None
    rows = _rows(answer)
    if rows is None or (len(rows) > 1 and any(len(row) > 1 for row in rows)):
        return None
    return [cell for row in rows for cell in row]


def _same_group(gold: Compound, given: Compound, symbols: SymbolTest) -> Outcome:
    if "set" in (gold.kind, given.kind) and {gold.kind, given.kind} & {"brackets", "ratio"}:
        return DIFFERENT
    if gold.kind == given.kind == "set" and _holds_sets(gold) != _holds_sets(given):
        return DIFFERENT
    if len(gold.items) != len(given.items):
        return DIFFERENT if not has_prose(gold) else UNDECIDED
    names = [_distinct_names(group) for group in (gold, given)]
    if bool(names[0]) != bool(names[1]):  # compare x=1, y=2 with (1, 2) in the order of the names
        gold, given = (_by_name(group, name) for group, name in zip((gold, given), names, strict=True))
    if _is_ordered(gold, given, names):
        if gold.kind == given.kind == "ratio" and (proportional := _proportional(gold, given)) is not None:
            return proportional
        outcome = _in_order(gold.items, given.items, symbols)
    else:
        outcome = _same_multiset(gold.items, given.items, symbols)
    return outcome if outcome is not SAME else _same_form(gold, given, any(names))


def _holds_sets(group: Compound) -> bool:
    return any(isinstance(item, Compound) and item.kind == "set" for item in group.items)


def _is_ordered(gold: Compound, given: Compound, names: Sequence[Sequence[str]]) -> bool:
    return (
        gold.kind in ("blanks", "brackets", "ratio", "piece")
        or given.kind in ("brackets", "ratio")
        or bool(names[0]) != bool(names[1])
    )


def _same_form(gold: Compound, given: Compound, named: bool) -> Outcome:
    """Compare the names, kinds, brackets and joining words of two multi-part answers whose items are equal.

    (1,2) and [1,2] are different intervals; (1,2) and a list 1, 2 are undecided.
    """
    loose = {"blanks", "list", "set"}
    if gold.name and given.name and gold.name != given.name:
        return DIFFERENT if re.fullmatch(r"[A-Z]", gold.name + given.name) else UNDECIDED
    tuples = [group for group in (gold, given) if group.kind == "brackets"]
    if len(tuples) == 1 and tuples[0].marks != ("()",):
        return DIFFERENT
    if {gold.kind, given.kind} <= loose or named:
        return SAME if named or not _joined_otherwise(gold, given) else DIFFERENT
    if gold.kind != given.kind:
        return SAME if tuples and len(tuples[0].items) > 2 else UNDECIDED
    if gold.kind != "brackets" or gold.marks == given.marks:
        return SAME
    return DIFFERENT if len(gold.items) == 2 else SAME


def _joined_otherwise(gold: Compound, given: Compound) -> bool:
    """Return whether one group is joined by "and" and the other by "or", which matters only for inequalities."""
    related = all(
        isinstance(item, Compound) and item.kind == "relation" and set(item.marks) - {"="} for item in gold.items
    )
    return related and {*gold.marks, *given.marks} >= {"or", "and"}


def _distinct_names(group: Compound) -> list[str]:
    """Return the variable names of an answer such as x=1, y=2, in order.

    Returns [] if the names are repeated (x=1, x=2) or only number the values (x_1=1, x_2=2).
    """
    names = [
        item.items[0].text
        for item in group.items
        if isinstance(item, Compound)
        and item.kind == "relation"
        and item.marks[:1] == ("=",)
        and isinstance(item.items[0], Leaf)
    ]
    bases = {re.sub(r"_.*", "", name) for name in names}
    return names if len(names) == len(group.items) and len(bases) == len(names) > 1 else []


def _by_name(group: Compound, names: Sequence[str]) -> Compound:
    if not names or not all(re.fullmatch(r"[a-zA-Z]", name) for name in names):
        return group
    return replace(
        group, items=tuple(item for _, item in sorted(zip(names, group.items, strict=True), key=lambda pair: pair[0]))
    )


def _same_multiset(gold: Sequence[Reading], given: Sequence[Reading], symbols: SymbolTest) -> Outcome:
    left = list(given)
    leftover: list[Reading] = []
    for item in gold:
        match = next((i for i, other in enumerate(left) if same_structure(item, other, symbols) is SAME), None)
        if match is None:
            leftover.append(item)
        else:
            left.pop(match)
    undecided = any(same_structure(a, b, symbols) is UNDECIDED for a in leftover for b in left)
    return SAME if not leftover else UNDECIDED if undecided else DIFFERENT


def _proportional(gold: Compound, given: Compound) -> Outcome | None:
    """Compare two ratios of nonzero numbers, or return None for other ratios.

    3:20 could be a time of day, so comparing it with 6:40 is undecided.
    """
    values = [[number(i.text) if isinstance(i, Leaf) else None for i in group.items] for group in (gold, given)]
    if not all(values[0]) or not all(values[1]):
        return None
    (first, *_), (other, *_) = values
    if any(a * other != b * first for a, b in zip(*values, strict=True)):
        return DIFFERENT
    clock = all(len(group.items) == 2 and len(group.items[1].text) == 2 for group in (gold, given))
    return UNDECIDED if clock and values[0] != values[1] else SAME


def _ratio_against_value(gold: Reading, given: Reading, symbols: SymbolTest) -> Outcome:
    """Compare a ratio with a value: undecided if they may be equal, as 2:3 and 2/3, and different otherwise."""
    ratio, value = (gold, given) if isinstance(gold, Compound) else (given, gold)
    if len(ratio.items) != 2 or not all(isinstance(item, Leaf) for item in ratio.items):
        return DIFFERENT
    top, bottom = (item.text for item in ratio.items)
    return DIFFERENT if same_leaf(Leaf(rf"\frac{{{top}}}{{{bottom}}}"), value, symbols) is DIFFERENT else UNDECIDED


def is_plain(answer: Reading) -> bool:
    """Return whether an answer consists only of numbers and formulas, and so cannot equal an answer of another form."""
    if isinstance(answer, Compound):
        return all(is_plain(item) for item in answer.items)
    return bool(answer.text) and not answer.prose and not _OPEN_FORM.search(answer.text)
