"""Decide whether two expressions are equal, using exact arithmetic, high precision and rational sample points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from mmprm.grading.atoms import Expression
from mmprm.grading.evaluation import context_of, evaluate_expression
from mmprm.grading.expressions import symbols, uses
from mmprm.grading.operations import UndefinedError, Value, as_number, is_exact
from mmprm.grading.residues import differ

PRECISIONS = (60, 150)
"""Precisions in decimal digits for comparing expressions with symbols. A value that shrinks with precision counts as
zero."""
MANY_DIGITS = (60, 200, 1200)
"""Precisions in decimal digits for comparing expressions without symbols."""


def equal(gold: Expression, given: Expression) -> bool | None:
    """Return whether two expressions are equal wherever both have a real value, or None if this cannot be
    determined."""
    if gold == given:
        return True
    for readings in _readings(gold, given):
        if outcome := _equal(gold, given, readings):
            return True
    if uses(gold, "ambiguous") or uses(given, "ambiguous"):
        other = _equal(_other_reading(gold), _other_reading(given), readings)
        return None if other else outcome
    return outcome


def _readings(gold: Expression, given: Expression) -> list[dict[str, Value]]:
    r"""Return the values to try for the symbol "log base": 10 and e, because \log without a base can mean either."""
    context = context_of(MANY_DIGITS[-1])
    if not (uses(gold, "log") or uses(given, "log")):
        return [{}]
    return [{"log base": Fraction(10)}, {"log base": +context.e}]


def _other_reading(node: Expression) -> Expression:
    """Return the expression with every 1/2x interpreted as 1/(2x)."""
    parts = tuple(_other_reading(part) if isinstance(part, tuple) else part for part in node)
    if node[0] != "ambiguous":
        return parts
    (_, top, bottom), factor = parts[1], parts[2]
    return ("divide", top, ("multiply", bottom, factor))


def _equal(gold: Expression, given: Expression, readings: Mapping[str, Value]) -> bool | None:
    names = sorted(symbols(gold) | symbols(given))
    if not names:
        outcome = _equal_at(gold, given, readings, MANY_DIGITS)
        return False if outcome and differ(gold, given) else outcome
    complex_ = any(_has_imaginary(node) for node in (gold, given))
    points = [{**readings, **point} for point in sample_points(names)]
    known = _known(_equal_at(gold, given, point, PRECISIONS, complex_) for point in points)
    if not complex_ and len(known) < 3 and all(known):  # too few points have real values
        known = _known(_equal_at(gold, given, point, PRECISIONS) for point in points)
    if len(known) >= 3 and all(known):
        return True
    if set(names) <= {"n", "k"}:  # conventional names of integers: cos n pi is (-1)^n
        # Consecutive integers, from 3 on: both parities of each name occur, and no two names have the same value.
        integers = [{name: Fraction(3 * i + j) for j, name in enumerate(names)} for i in range(1, 7)]
        if all(_equal_at(gold, given, {**readings, **point}, PRECISIONS, complex_) for point in integers):
            return True
    return None if all(known) else False


def _known(outcomes: Iterable[bool | None]) -> list[bool]:
    """Return the outcomes that are not None, up to and including the first False."""
    known: list[bool] = []
    for outcome in outcomes:
        if outcome is not None:
            known.append(outcome)
        if outcome is False:
            break
    return known


def _has_imaginary(node: Expression) -> bool:
    return node == ("constant", "i") or any(_has_imaginary(part) for part in node if isinstance(part, tuple))


def sample_points(names: Sequence[str]) -> list[dict[str, Fraction]]:
    """Return seven sample points with irregular rational coordinates; in three of the points, the signs of the
    coordinates alternate."""
    points = []
    for i in range(7):
        values = {}
        for j, name in enumerate(names):
            size = Fraction(2 + (37 * (i + 1) * (j + 2) + 11 * j * j) % 89, 23 + 2 * i)
            values[name] = -size if i >= 4 and (i + j) % 2 else size
        points.append(values)
    return points


def _equal_at(
    gold: Expression, given: Expression, point: Mapping[str, Value], precisions: tuple[int, ...], complex_: bool = True
) -> bool | None:
    """Compare two expressions at one point.

    Returns None if either expression is undefined there, or is not real although neither contains i.
    """
    earlier: tuple[Value, Value] | None = None
    for digits in precisions:
        context = context_of(digits)
        try:
            a, b = evaluate_expression(gold, point, digits), evaluate_expression(given, point, digits)
        except (UndefinedError, RecursionError, OverflowError, MemoryError):
            return None
        if is_exact(a, b):
            return a == b
        a, b = as_number(context, a), as_number(context, b)
        if not complex_ and not (_is_real(context, a, digits) and _is_real(context, b, digits)):
            return None
        if context.isinf(a) or context.isinf(b):
            return None if context.isinf(a) and context.isinf(b) else False
        if earlier is not None:
            c, d = (_without_noise(context, new, old) for new, old in zip((a, b), earlier, strict=True))
            if abs(c - d) > context.mpf(10) ** (-digits * 3 // 4) * max(abs(c), abs(d)):
                return False
        earlier = (a, b)
    return True


def _is_real(context: Any, value: Value, digits: int) -> bool:
    return abs(context.im(value)) <= context.mpf(10) ** (-digits // 2) * abs(value)


def _without_noise(context: Any, value: Value, earlier: Value) -> Value:
    """Return zero for a value that shrinks as precision grows, such as sin(pi)."""
    return context.mpf(0) if abs(value) < context.mpf(10) ** -40 * abs(earlier) else value
