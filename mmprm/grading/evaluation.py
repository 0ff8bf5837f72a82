"""Values of expressions: exact fractions as far as they reach, beyond them numbers of any wanted precision; and whether
two expressions are equal, decided by exact arithmetic, many digits, and values at rational points.

Nothing here is rounded to zero: 1/2^2024 and 1/2^2023 differ, as do 9.11e-31 and 1.67e-27.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import reduce
from math import gcd, isqrt, lcm
from typing import Any

from mmprm.grading.expressions import Node, symbols, uses

Value = Any
"""A Fraction, or a real or complex number of mpmath."""

DIGITS = (60, 150)
"""Precisions at which expressions with symbols are compared; a difference that shrinks with the digits is none."""
MANY_DIGITS = (60, 200, 1200)
"""Precisions at which two numbers are compared."""
MAX_EXACT_BITS = 200_000
MAX_EXPONENT_BITS = 2**34
MAX_FACTORIAL = 5000
MAX_TERMS = 3000


class UndefinedError(ArithmeticError):
    """The expression has no value at this point, or one that is out of reach."""


class _Contexts(threading.local):
    """mpmath contexts by precision, of each thread its own."""

    def __init__(self) -> None:
        self.by_digits: dict[int, Any] = {}

    def get(self, digits: int) -> Any:
        if digits not in self.by_digits:
            from mpmath.ctx_mp import MPContext

            context = MPContext()
            context.dps = digits
            self.by_digits[digits] = context
        return self.by_digits[digits]


_CONTEXTS = _Contexts()


def evaluate(node: Node, point: Mapping[str, Value], digits: int = 60) -> Value:
    """Return the value of a tree where symbols have the values of `point`; raises UndefinedError."""
    return _Evaluator(point, digits).value(node)


class _Evaluator:
    def __init__(self, point: Mapping[str, Value], digits: int) -> None:
        self.point, self.context = point, _CONTEXTS.get(digits)

    def value(self, node: Node) -> Value:
        kind = node[0]
        if kind == "number":
            return node[1]
        if kind in ("symbol", "constant") and node[1] in self.point:
            return self.point[node[1]]
        if kind == "symbol":
            raise UndefinedError(f"{node[1]} has no value")
        if kind == "constant":
            return self.constant(node[1])
        if kind in ("sum", "product"):
            return self.series(*node)
        if kind == "call":
            return self.unknown_function(node[1], [self.value(part) for part in node[2:]])
        if kind in ("sin", "cos", "tan", "cot", "sec", "csc") or kind == "degrees":
            return self.trigonometric(kind, node[1])
        values = [self.value(part) for part in node[1:]]
        try:
            result = OPERATIONS[kind](self.context, *values)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise UndefinedError(f"{kind}: {error}") from error
        return self.checked(result)

    def checked(self, value: Value) -> Value:
        if not isinstance(value, Fraction) and self.context.isnan(value):
            raise UndefinedError("has no value")
        return value

    def constant(self, name: str) -> Value:
        context = self.context
        values = {"pi": lambda: +context.pi, "e": lambda: +context.e, "i": lambda: context.mpc(0, 1)}
        if name not in values:
            raise UndefinedError(f"unknown {name}")
        return values[name]()

    def series(self, kind: str, variable: str, low: Node, high: Node, term: Node) -> Value:
        first, last = self.value(low), self.value(high)
        whole = (
            isinstance(first, Fraction) and isinstance(last, Fraction) and first.denominator == last.denominator == 1
        )
        if not whole or last - first >= MAX_TERMS:
            raise UndefinedError("a series of many terms")
        outer, total = self.point, Fraction(kind == "product")
        for index in range(int(first), int(last) + 1):
            self.point = {**outer, variable: Fraction(index)}
            value = self.value(term)
            total = (_add if kind == "sum" else _multiply)(self.context, total, value)
        self.point = outer
        return total

    def unknown_function(self, name: str, arguments: list[Value]) -> Value:
        """A value that depends on nothing but the name and the arguments, in any order."""
        seed = sum(ord(letter) * 31**place for place, letter in enumerate(name))
        context, numbers = self.context, [_number(self.context, argument) for argument in arguments]
        if any(abs(number) > 10**30 for number in numbers):
            raise UndefinedError("an argument out of reach")
        return context.sin(seed + 3 * sum(numbers)) + sum(context.cos(number / 7) for number in numbers) * (
            seed % 89 + 2
        )

    def trigonometric(self, kind: str, argument: Node) -> Value:
        value = self.value(argument)
        if kind == "degrees":
            return self.checked(_number(self.context, value) * self.context.pi / 180)
        number = _number(self.context, value)
        if abs(number) > 10**30:
            raise UndefinedError("an angle out of reach")
        try:
            return self.checked(getattr(self.context, kind)(number))
        except (ArithmeticError, ValueError) as error:
            raise UndefinedError(f"{kind}: {error}") from error


def _number(context: Any, value: Value) -> Value:
    return context.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _exact(*values: Value) -> bool:
    return all(isinstance(value, Fraction) for value in values)


def _add(context: Any, a: Value, b: Value) -> Value:
    return a + b if _exact(a, b) else _number(context, a) + _number(context, b)


def _multiply(context: Any, a: Value, b: Value) -> Value:
    return a * b if _exact(a, b) else _number(context, a) * _number(context, b)


def _divide(context: Any, a: Value, b: Value) -> Value:
    if not b or (not _exact(b) and context.isinf(b)):
        raise ZeroDivisionError
    return a / b if _exact(a, b) else _number(context, a) / _number(context, b)


def _power(context: Any, base: Value, exponent: Value) -> Value:
    if _exact(base, exponent):
        if exponent.denominator == 1 and _bits(base) * abs(exponent.numerator) <= MAX_EXACT_BITS:
            return base**exponent.numerator
        if exponent.denominator == 2 and base >= 0 and (root := _exact_root(base)) is not None:
            return _power(context, root, Fraction(exponent.numerator))
    base, exponent = _number(context, base), _number(context, exponent)
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
    odd = _exact(degree) and degree.denominator == 1 and degree.numerator % 2 == 1
    if odd and context.im(_number(context, radicand)) == 0 and radicand < 0:
        return -_power(context, -radicand, 1 / degree)
    return _power(context, radicand, 1 / degree)


def _factorial(context: Any, value: Value) -> Value:
    if _exact(value) and value.denominator == 1 and 0 <= value <= MAX_FACTORIAL:
        return Fraction(reduce(int.__mul__, range(1, int(value) + 1), 1))
    if abs(value) > 10**12:
        raise UndefinedError("a factorial out of reach")
    return context.gamma(_number(context, value) + 1)


def _binomial(context: Any, top: Value, bottom: Value) -> Value:
    if _exact(top, bottom) and top.denominator == bottom.denominator == 1 and 0 <= bottom <= top <= MAX_FACTORIAL:
        result = Fraction(1)
        for i in range(int(bottom)):
            result = result * (top - i) / (i + 1)
        return result
    return context.binomial(_number(context, top), _number(context, bottom))


def _exponential(context: Any, value: Value) -> Value:
    return _power(context, +context.e, value)


def _logarithm(context: Any, value: Value, base: Value) -> Value:
    value, base = _number(context, value), _number(context, base)
    if not value or not base or base == 1:
        raise ZeroDivisionError
    return context.log(value) / context.log(base)


def _whole(function: Callable[..., int]) -> Callable[..., Value]:
    def on_whole_numbers(context: Any, *values: Value) -> Value:
        if not _exact(*values) or any(value.denominator != 1 for value in values):
            raise UndefinedError("not whole")
        return Fraction(function(*(value.numerator for value in values)))

    return on_whole_numbers


def _rounded(name: str) -> Callable[..., Value]:
    def rounded(context: Any, value: Value) -> Value:
        return Fraction(int(getattr(context, name)(_number(context, value))))

    return rounded


def _modulo(context: Any, a: Value, b: Value) -> Value:
    if not b:
        raise ZeroDivisionError
    return a % b if _exact(a, b) else _number(context, a) % _number(context, b)


def _by_context(name: str) -> Callable[..., Value]:
    def of_number(context: Any, value: Value) -> Value:
        number = _number(context, value)
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


def equal(gold: Node, given: Node) -> bool | None:
    """Return whether two expressions are equal wherever both have a real value; None where that stays open."""
    if gold == given:
        return True
    for readings in _readings(gold, given):
        if outcome := _equal(gold, given, readings):
            return True
    if uses(gold, "ambiguous") or uses(given, "ambiguous"):
        other = _equal(_other_reading(gold), _other_reading(given), readings)
        return None if other else outcome
    return outcome


def _readings(gold: Node, given: Node) -> list[dict[str, Value]]:
    r"""A bare \log is natural or decimal: two readings of the constant "log base"."""
    context = _CONTEXTS.get(MANY_DIGITS[-1])
    if not (uses(gold, "log") or uses(given, "log")):
        return [{}]
    return [{"log base": Fraction(10)}, {"log base": +context.e}]


def _other_reading(node: Node) -> Node:
    """1/2x as 1/(2x)."""
    parts = tuple(_other_reading(part) if isinstance(part, tuple) else part for part in node)
    if node[0] != "ambiguous":
        return parts
    (_, top, bottom), factor = parts[1], parts[2]
    return ("divide", top, ("multiply", bottom, factor))


def _equal(gold: Node, given: Node, readings: Mapping[str, Value]) -> bool | None:
    names = sorted(symbols(gold) | symbols(given))
    if not names:
        return _equal_at(gold, given, readings, MANY_DIGITS)
    complex_ = any(_has_imaginary(node) for node in (gold, given))
    points = [{**readings, **point} for point in sample_points(names)]
    known = _known(_equal_at(gold, given, point, DIGITS, complex_) for point in points)
    if not complex_ and len(known) < 3 and all(known):  # hardly ever real
        known = _known(_equal_at(gold, given, point, DIGITS) for point in points)
    if len(known) >= 3 and all(known):
        return True
    if set(names) <= {"n", "k"}:  # usual names of whole numbers: cos n pi is (-1)^n
        whole = [{**readings, **{name: Fraction(3 * i + j) for j, name in enumerate(names)}} for i in range(1, 7)]
        if all(_equal_at(gold, given, point, DIGITS, complex_) for point in whole):
            return True
    return None if all(known) else False


def _known(outcomes: Iterable[bool | None]) -> list[bool]:
    """Up to the first difference."""
    known: list[bool] = []
    for outcome in outcomes:
        if outcome is not None:
            known.append(outcome)
        if outcome is False:
            break
    return known


def _has_imaginary(node: Node) -> bool:
    return node == ("constant", "i") or any(_has_imaginary(part) for part in node if isinstance(part, tuple))


def sample_points(names: list[str]) -> list[dict[str, Fraction]]:
    """Return rational values without a pattern: four points with positive values, three with both signs."""
    points = []
    for i in range(7):
        values = {}
        for j, name in enumerate(names):
            size = Fraction(2 + (37 * (i + 1) * (j + 2) + 11 * j * j) % 89, 23 + 2 * i)
            values[name] = -size if i >= 4 and (i + j) % 2 else size
        points.append(values)
    return points


def _equal_at(
    gold: Node, given: Node, point: Mapping[str, Value], precisions: tuple[int, ...], complex_: bool = True
) -> bool | None:
    """Compare at one point; None where one side has no value there, or no real one though no i occurs."""
    earlier: tuple[Value, Value] | None = None
    for digits in precisions:
        context = _CONTEXTS.get(digits)
        try:
            a, b = evaluate(gold, point, digits), evaluate(given, point, digits)
        except (UndefinedError, RecursionError, OverflowError, MemoryError):
            return None
        if _exact(a, b):
            return a == b
        a, b = _number(context, a), _number(context, b)
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
    """Zero for what shrinks as the digits grow, such as sin(pi)."""
    return context.mpf(0) if abs(value) < context.mpf(10) ** -40 * abs(earlier) else value
