"""The symbolic test of two expressions with math-verify; runs in worker processes, which the grader may kill."""

from __future__ import annotations

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Eq, Expr, Float, MatrixBase, Set, simplify
from sympy.core.relational import GreaterThan, LessThan, Relational, StrictGreaterThan, StrictLessThan

from mmprm.grading.comparison import DIFFERENT, SAME, UNDECIDED, Outcome
from mmprm.grading.numbers import is_decimal, rounds_to

_EXTRACTION = [LatexExtractionConfig()]
_LESS, _MORE = (LessThan, StrictLessThan), (GreaterThan, StrictGreaterThan)


def same(gold: str, given: str) -> Outcome:
    """Compare two expressions, or two equations or inequalities, as values.

    UNDECIDED when the gold does not parse; an answer that does not parse against a gold that does is DIFFERENT.
    """
    gold_value = _parse(gold)
    if gold_value is None:
        return UNDECIDED
    given_value = _parse(given)
    if given_value is None:
        return DIFFERENT
    if isinstance(gold_value, Relational) and isinstance(given_value, Relational):
        return SAME if _equivalent(gold_value, given_value) else DIFFERENT
    for kind in (Expr, MatrixBase, Set):
        if isinstance(gold_value, kind) and isinstance(given_value, kind):
            break
    else:
        return DIFFERENT
    if verify(gold_value, given_value, timeout_seconds=None):
        return SAME
    return SAME if is_decimal(given) and not gold_value.has(Float) and _rounds(gold_value, given) else DIFFERENT


def _parse(text: str) -> Basic | MatrixBase | None:
    if not text:
        return None
    values = parse(f"${text.replace('%', chr(92) + '%')}$", _EXTRACTION, "no_fallback", parsing_timeout=None)
    return values[0] if values and not isinstance(values[0], str) else None


def _equivalent(gold: Relational, given: Relational) -> bool:
    """With both sides on the left, the two differ by a constant factor only; a negative one turns < into >."""
    ratio = simplify((gold.lhs - gold.rhs) / (given.lhs - given.rhs))
    if not ratio.is_number or ratio.is_zero or not ratio.is_finite:
        return False
    if isinstance(gold, Eq) or isinstance(given, Eq):
        return isinstance(gold, Eq) and isinstance(given, Eq)
    if ratio.is_negative:
        given = given.reversedsign
    return type(gold) is type(given) and isinstance(gold, (*_LESS, *_MORE))


def _rounds(value: Basic | MatrixBase, written: str) -> bool:
    number = value.evalf(30) if isinstance(value, Expr) else None
    return number is not None and number.is_Float and rounds_to(float(number), written)
