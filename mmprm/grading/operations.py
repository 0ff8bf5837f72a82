"""Define the operations in expressions: exact on fractions where possible, and otherwise computed with mpmath."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import comb, factorial, gcd, isqrt, lcm
from typing import Any

Value = Any
"""A Fraction, or a real or complex mpmath number."""

MAX_EXACT_BITS = 200_000
MAX_EXPONENT_BITS = 2**34
MAX_FACTORIAL = 5000


class UndefinedError(ArithmeticError):
    """Raised when an expression has no value at a point, or has a value that is too large to compute."""


def as_number(context: Any, value: Value) -> Value:
    """Convert a value to an mpmath number."""
    return context.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def is_exact(*values: Value) -> bool:
    """Return whether all given values are fractions."""
    return all(isinstance(value, Fraction) for value in values)


def _add(context: Any, a: Value, b: Value) -> Value:
    return a + b if is_exact(a, b) else as_number(context, a) + as_number(context, b)


def _multiply(context: Any, a: Value, b: Value) -> Value:
    return a * b if is_exact(a, b) else as_number(context, a) * as_number(context, b)


def _divide(context: Any, a: Value, b: Value) -> Value:
    if not b or (not is_exact(b) and context.isinf(b)):
        raise ZeroDivisionError
    return a / b if is_exact(a, b) else as_number(context, a) / as_number(context, b)


def _power(context: Any, base: Value, exponent: Value) -> Value:
    if is_exact(base, exponent):
        if exponent.denominator == 1 and _bits(base) * abs(exponent.numerator) <= MAX_EXACT_BITS:
            return base**exponent.numerator
        if exponent.denominator == 2 and base >= 0 and (root := _exact_root(base)) is not None:
            return _power(context, root, Fraction(exponent.numerator))
    base, exponent = as_number(context, base), as_number(context, exponent)
    if not base or base == 1:
        if not base and context.re(exponent) <= 0:
            raise ZeroDivisionError
        return base if base or exponent else context.mpf(1)
    size = abs(context.log(abs(base), 2) * exponent)
    if size > MAX_EXPONENT_BITS:
        if context.im(base) == 0 == context.im(exponent) and (base > 1) == (exponent > 0) and base > 0:
            return context.inf
        raise UndefinedError("a power out of reach")
    return context.power(base, exponent)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact_root(value: Fraction) -> Fraction | None:
    top, bottom = isqrt(value.numerator), isqrt(value.denominator)
    return Fraction(top, bottom) if top * top == value.numerator and bottom * bottom == value.denominator else None


def _root(context: Any, radicand: Value, degree: Value) -> Value:
    odd = is_exact(degree) and degree.denominator == 1 and degree.numerator % 2 == 1
    if odd and context.im(as_number(context, radicand)) == 0 and radicand < 0:
        return -_power(context, -radicand, 1 / degree)
    return _power(context, radicand, 1 / degree)


def _factorial(context: Any, value: Value) -> Value:
    if is_exact(value) and value.denominator == 1 and 0 <= value <= MAX_FACTORIAL:
        return Fraction(factorial(int(value)))
    if abs(value) > 10**12:
        raise UndefinedError("a factorial out of reach")
    return context.gamma(as_number(context, value) + 1)


def _binomial(context: Any, top: Value, bottom: Value) -> Value:
    if is_exact(top, bottom) and top.denominator == bottom.denominator == 1 and 0 <= bottom <= top <= MAX_FACTORIAL:
        return Fraction(comb(int(top), int(bottom)))
    return context.binomial(as_number(context, top), as_number(context, bottom))


def _exponential(context: Any, value: Value) -> Value:
    return _power(context, +context.e, value)


def _logarithm(context: Any, value: Value, base: Value) -> Value:
    value, base = as_number(context, value), as_number(context, base)
    if not value or not base or base == 1:
        raise ZeroDivisionError
    return context.log(value) / context.log(base)


def _whole(function: Callable[..., int]) -> Callable[..., Value]:
    def on_whole_numbers(context: Any, *values: Value) -> Value:
        if not is_exact(*values) or any(value.denominator != 1 for value in values):
            raise UndefinedError("not whole")
        return Fraction(function(*(value.numerator for value in values)))

    return on_whole_numbers


def _rounded(name: str) -> Callable[..., Value]:
    def rounded(context: Any, value: Value) -> Value:
        return Fraction(int(getattr(context, name)(as_number(context, value))))

    return rounded


def _modulo(context: Any, a: Value, b: Value) -> Value:
    if not b:
        raise ZeroDivisionError
    return a % b if is_exact(a, b) else as_number(context, a) % as_number(context, b)


def _by_context(name: str) -> Callable[..., Value]:
    def of_number(context: Any, value: Value) -> Value:
        number = as_number(context, value)
        if name in ("sinh", "cosh", "tanh") and abs(number) > 10**6:
            raise UndefinedError("out of reach")
        return getattr(context, name)(number)

    return of_number


OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": _add,
    "negative": lambda context, a: -a,
    "multiply": _multiply,
    "divide": _divide,
    "ambiguous": _multiply,
    "power": _power,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "modulo": _modulo,
    "abs": lambda context, a: abs(a),
    "exp": _exponential,
    "ln": lambda context, a: _logarithm(context, a, +context.e),
    "lg": lambda context, a: _logarithm(context, a, Fraction(10)),
    "log": _logarithm,
    "gcd": _whole(gcd),
    "lcm": _whole(lcm),
    "max": lambda context, *values: max(values),
    "min": lambda context, *values: min(values),
    "floor": _rounded("floor"),
    "ceil": _rounded("ceil"),
    "zeta": _by_context("zeta"),
    **{name: _by_context(name[:1] + name[3:] if name.startswith("arc") else name) for name in ("sinh", "cosh", "tanh")},
    **{f"arc{name}": _by_context(f"a{name}") for name in ("sin", "cos", "tan")},
}
