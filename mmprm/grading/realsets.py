"""Represent intervals, inequalities, unions and set-builder forms uniformly as sets of real numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from mmprm.grading.evaluation import evaluate_expression
from mmprm.grading.expressions import UnreadableError, parse
from mmprm.grading.operations import UndefinedError
from mmprm.grading.outcome import DIFFERENT, Outcome, all_of
from mmprm.grading.reading import Compound, Leaf, Reading

_REALS = re.compile(
    r"\\mathbb\s*\{?R\}?|R|\\R|(?:the set of )?(?:all )?real numbers?|all reals|全体实数|任意实数", re.IGNORECASE
)
_EMPTY = re.compile(
    r"\\emptyset|\\\{\s*\\\}|(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?|values?)"
    r"|(?:the )?empty set|none|无解|空集|不存在"
    r"|does not exist|dne",
    re.IGNORECASE,
)
_INFINITY = re.compile(r"([-+]?)\s*\\infty|([-+]?)\s*(?:infinity|inf|oo)")
_VARIABLE = re.compile(r"\\?[a-zA-Z](?:_\{?\w+\}?)?'*|\\[a-z]+|")
_LESS, _MORE = {"<", r"\leq"}, {">", r"\geq"}


@dataclass(frozen=True, slots=True)
class RealInterval:
    """Represents an interval; a bound of None is infinite."""

    low: str | None
    low_closed: bool
    high: str | None
    high_closed: bool


@dataclass(frozen=True, slots=True)
class RealSet:
    """Represents a union of intervals, with the variable's name if one is given."""

    parts: tuple[RealInterval, ...]
    name: str = ""


WHOLE = RealInterval(None, False, None, False)


def real_set(answer: Reading) -> RealSet | None:
    """Return the set of real numbers that an answer describes, or None if it describes no set.

    A pair in brackets counts as an interval, so callers must know that the other answer is a set.
    """
    if isinstance(answer, Leaf):
        if answer.unit:
            return None
        if _REALS.fullmatch(answer.text):
            return RealSet((WHOLE,))
        return RealSet(()) if _EMPTY.fullmatch(answer.text) else None
    return _READERS[answer.kind](answer) if answer.kind in _READERS else None


def is_explicit(answer: Reading) -> bool:
    """Return whether an answer is written unmistakably as a set, unlike (1, 2), which may be a pair of numbers."""
    if isinstance(answer, Leaf):
        return real_set(answer) is not None
    if answer.kind == "brackets":
        return answer.marks != ("()",) or any(
            isinstance(item, Leaf) and _INFINITY.fullmatch(item.text) for item in answer.items
        )
    return real_set(answer) is not None


def same_set(gold: RealSet, given: RealSet, same_text: Callable[[str, str], Outcome]) -> Outcome:
    """Compare two sets of real numbers by the bounds of their intervals."""
    if gold.name and given.name and gold.name != given.name:
        return DIFFERENT
    if len(gold.parts) != len(given.parts):
        return DIFFERENT
    return all_of(_same_part(a, b, same_text) for a, b in zip(_ordered(gold), _ordered(given), strict=True))


def _same_part(gold: RealInterval, given: RealInterval, same_text: Callable[[str, str], Outcome]) -> Outcome:
    if (gold.low_closed, gold.high_closed) != (given.low_closed, given.high_closed):
        return DIFFERENT
    outcomes = []
    for a, b in ((gold.low, given.low), (gold.high, given.high)):
        if (a is None) != (b is None):
            return DIFFERENT
        if a is not None and b is not None:
            outcomes.append(same_text(a, b))
    return all_of(outcomes)


def _ordered(found: RealSet) -> list[RealInterval]:
    keys = [_size(part.low) if part.low is not None else float("-inf") for part in found.parts]
    if any(key is None for key in keys):
        return list(found.parts)
    return [found.parts[i] for i in sorted(range(len(keys)), key=lambda i: keys[i])]


def _size(text: str) -> float | None:
    try:
        value = evaluate_expression(parse(text), {})
        return float(value) if isinstance(value, Fraction) else float(value.real)
    except (UnreadableError, UndefinedError, OverflowError, AttributeError):
        return None


def _interval(group: Compound) -> RealSet | None:
    if (
        len(group.items) != 2
        or group.name
        or not all(isinstance(item, Leaf) and not item.prose for item in group.items)
    ):
        return None
    low, high = (item.text for item in group.items)
    opening, closing = group.marks[0][0], group.marks[0][-1]
    # (∞, 5) and (5, 3) are not intervals, so such pairs are points.
    if re.fullmatch(r"\+?\s*\\infty", low) or re.fullmatch(r"-\s*\\infty", high):
        return None
    low_end, high_end = (None if _INFINITY.fullmatch(end) else end for end in (low, high))
    if low_end is not None and high_end is not None:
        sizes = _size(low_end), _size(high_end)
        if None not in sizes and sizes[0] > sizes[1]:
            return None
    return RealSet(
        (
            RealInterval(
                low_end, opening == "[" and low_end is not None, high_end, closing == "]" and high_end is not None
            ),
        )
    )


def _union(group: Compound) -> RealSet | None:
    sets = [real_set(item) for item in group.items]
    if any(found is None for found in sets):
        return None
    names = {found.name for found in sets} - {""}
    if len(names) > 1:
        return None
    parts = tuple(part for found in sets for part in found.parts)
    return RealSet(parts, names.pop() if names else "")


def _joined(group: Compound) -> RealSet | None:
    """Return the set described by conditions joined by "or" or "and" (x<2 or x>3), or None for any other list."""
    if not all(isinstance(item, Compound) for item in group.items):
        return None
    if "and" not in group.marks:
        return _union(group) if "or" in group.marks else None
    sets = [real_set(item) for item in group.items]
    if len(sets) != 2 or any(found is None or len(found.parts) != 1 for found in sets) or sets[0].name != sets[1].name:
        return None
    # "and" intersects: one condition must bound the variable from below, and the other one from above.
    first, second = (found.parts[0] for found in sets)
    if first.low is None and second.high is None:
        first, second = second, first
    if first.high is not None or second.low is not None or first.low is None or second.high is None:
        return None
    sizes = _size(first.low), _size(second.high)
    if None not in sizes and sizes[0] > sizes[1]:
        return RealSet((), sets[0].name)
    return RealSet((RealInterval(first.low, first.low_closed, second.high, second.high_closed),), sets[0].name)


def _builder(group: Compound) -> RealSet | None:
    found = real_set(group.items[0])
    if found is None or found.name not in ("", group.name):
        return None
    return replace(found, name=group.name)


def _relation(group: Compound) -> RealSet | None:
    marks, items = group.marks, group.items
    if marks == (r"\in",):
        found = real_set(items[1])
        return replace(found, name=items[0].text) if found is not None and isinstance(items[0], Leaf) else None
    if not all(isinstance(item, Leaf) for item in items):
        return None
    texts = [item.text for item in items]
    if marks == (r"\neq",) and _is_variable(texts[0]):
        return RealSet(
            (RealInterval(None, False, texts[1], False), RealInterval(texts[1], False, None, False)), texts[0]
        )
    if set(marks) <= _MORE:
        texts, marks = texts[::-1], tuple("<" if mark == ">" else r"\leq" for mark in marks[::-1])
    if not set(marks) <= _LESS:
        return None
    closed = [mark == r"\leq" for mark in marks]
    if len(texts) == 3 and _is_variable(texts[1]):
        ends = [None if _INFINITY.fullmatch(end) else end for end in (texts[0], texts[2])]
        return RealSet(
            (RealInterval(ends[0], closed[0] and ends[0] is not None, ends[1], closed[1] and ends[1] is not None),),
            texts[1],
        )
    if len(texts) == 2 and _is_variable(texts[0]) and not (texts[1] and _is_variable(texts[1])):
        return RealSet((RealInterval(None, False, texts[1], closed[0]),), texts[0])
    if len(texts) == 2 and _is_variable(texts[1]) and not (texts[0] and _is_variable(texts[0])):
        return RealSet((RealInterval(texts[0], closed[0], None, False),), texts[1])
    return None


def _is_variable(text: str) -> bool:
    return bool(_VARIABLE.fullmatch(text)) and text not in (r"\pi", "e", r"\infty")


_READERS: dict[str, Callable[[Compound], RealSet | None]] = {
    "brackets": _interval,
    "union": _union,
    "list": _joined,
    "builder": _builder,
    "relation": _relation,
}
