"""Compare expressions that `expressions` cannot parse (integrals, limits, matrices in products).

Math-Verify parses them; equality is decided here, because its `verify` treats numbers below 1e-16 as zero. This module
runs in worker processes, which the grader may kill.
"""

from __future__ import annotations

from fractions import Fraction

from math_verify import LatexExtractionConfig, parse
from sympy import Basic, Expr, MatrixBase, PrecisionExhausted, Rational, Set, expand, simplify
from sympy.core.relational import Eq, GreaterThan, LessThan, Relational, StrictGreaterThan, StrictLessThan

from mmprm.grading.numbers import is_decimal, is_rounding, rounds_to
from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome

_EXTRACTION = [LatexExtractionConfig()]
_ORDER = (LessThan, StrictLessThan, GreaterThan, StrictGreaterThan)
_MAX_DIGITS = 1000
"""Maximum number of digits to compare when deciding whether two numbers are equal."""


def same_value(gold: str, given: str) -> Outcome:
    """Compare two expressions, relations, matrices or sets.

    Returns UNDECIDED if the gold answer does not parse, and DIFFERENT if only the other answer does not parse.
    """
    gold_value = _parse(gold)
    if gold_value is None:
        return UNDECIDED
    given_value = _parse(given)
    if given_value is None:
        return DIFFERENT
    if isinstance(gold_value, Relational) and isinstance(given_value, Relational):
        return SAME if _equivalent(gold_value, given_value) else DIFFERENT
    if isinstance(gold_value, MatrixBase) and isinstance(given_value, MatrixBase):
        equal = gold_value.shape == given_value.shape and all(map(_equal, gold_value, given_value))
        return SAME if equal else DIFFERENT
    if isinstance(gold_value, Set) and isinstance(given_value, Set):
        return SAME if gold_value.doit() == given_value.doit() else UNDECIDED
    if isinstance(gold_value, Expr) and isinstance(given_value, Expr):
        equal = _equal(gold_value, given_value) or _rounds(gold_value, given_value, gold, given)
        return SAME if equal else DIFFERENT
    return DIFFERENT


def _parse(text: str) -> Basic | MatrixBase | None:
    if not text:
        return None
    values = parse(f"${text.replace('%', chr(92) + '%')}$", _EXTRACTION, "no_fallback", parsing_timeout=None)
    return values[0] if values and not isinstance(values[0], str) else None


def _equal(gold: Expr, given: Expr) -> bool:
    """Return whether two expressions are equal after simplification or, for numbers, to _MAX_DIGITS digits."""
    difference = expand(gold.doit() - given.doit())
    if difference.is_zero:
        return True
    if not difference.free_symbols:
        try:
            return difference.evalf(15, maxn=_MAX_DIGITS, strict=True).is_zero is True
        except PrecisionExhausted:  # zero to all digits examined
            return True
    return simplify(difference).is_zero is True


def _equivalent(gold: Relational, given: Relational) -> bool:
    """Return whether two relations have the same relation sign, and differences with a constant nonzero ratio.

    The difference is the left side minus the right side. If the ratio is negative, an inequality is reversed first.
    """
    ratio = simplify((gold.lhs - gold.rhs) / (given.lhs - given.rhs))
    if not ratio.is_number or ratio.is_zero or not ratio.is_finite:
        return False
    if isinstance(gold, Eq) or isinstance(given, Eq):
        return isinstance(gold, Eq) and isinstance(given, Eq)
    if ratio.is_negative:
        given = given.reversedsign
    return type(gold) is type(given) and isinstance(gold, _ORDER)


def _rounds(gold: Expr, given: Expr, gold_text: str, given_text: str) -> bool:
    values = [_as_fraction(value) for value in (gold, given)]
    if None in values:
        return False
    if is_decimal(gold_text):
        return is_rounding(gold_text, values[1])
    return is_decimal(given_text) and rounds_to(values[0], given_text)


def _as_fraction(value: Expr) -> Fraction | None:
    number = value.evalf(40)
    if not number.is_Float and not number.is_Rational:
        return None
    exact = Rational(number)
    return Fraction(int(exact.p), int(exact.q))
