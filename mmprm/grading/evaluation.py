"""Evaluate expressions to exact fractions where possible, and otherwise to numbers of any requested precision.

Nothing is rounded to zero: 1/2^2024 and 1/2^2023 differ, as do 9.11e-31 and 1.67e-27.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from mmprm.grading.atoms import Expression
from mmprm.grading.operations import OPERATIONS, UndefinedError, Value, as_number

MAX_TERMS = 3000


class TooLongError(Exception):
    """Raised when an evaluation exceeds the caller's time limit."""


class _Deadline(threading.local):
    at = float("inf")


_DEADLINE = _Deadline()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the CPU time of evaluations in this thread; after `seconds`, an evaluation raises TooLongError.

    The limit is checked before each operation.
    """
    _DEADLINE.at = time.thread_time() + seconds
    try:
        yield
    finally:
        _DEADLINE.at = float("inf")


class _Contexts(threading.local):
    """Caches one mpmath context per thread and precision."""

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


def context_of(digits: int) -> Any:
    """Return this thread's mpmath context for a precision of `digits` decimal digits."""
    return _CONTEXTS.get(digits)


def evaluate_expression(node: Expression, point: Mapping[str, Value], digits: int = 60) -> Value:
    """Evaluate an expression with its symbols set to the values in `point`. Raises UndefinedError."""
    return _Evaluator(point, digits).value(node)


class _Evaluator:
    """Evaluates expression trees at a given point and precision."""

    def __init__(self, point: Mapping[str, Value], digits: int) -> None:
        self.point, self.context = point, context_of(digits)

    def value(self, node: Expression) -> Value:
        kind = node[0]
        if kind == "number":
            return node[1]
        if time.thread_time() > _DEADLINE.at:
            raise TooLongError
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
        """Return the value, or raise UndefinedError if it is NaN."""
        if not isinstance(value, Fraction) and self.context.isnan(value):
            raise UndefinedError("has no value")
        return value

    def constant(self, name: str) -> Value:
        context = self.context
        values = {"pi": lambda: +context.pi, "e": lambda: +context.e, "i": lambda: context.mpc(0, 1)}
        if name not in values:
            raise UndefinedError(f"unknown {name}")
        return values[name]()

    def series(self, kind: str, variable: str, low: Expression, high: Expression, term: Expression) -> Value:
        """Evaluate a sum or product between integer bounds, with at most MAX_TERMS terms."""
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
            total = OPERATIONS["add" if kind == "sum" else "multiply"](self.context, total, value)
        self.point = outer
        return total

    def unknown_function(self, name: str, arguments: list[Value]) -> Value:
        """Evaluate an unknown function to a pseudo-random value that depends on its name and arguments, but not on
        their order."""
        seed = sum(ord(letter) * 31**position for position, letter in enumerate(name))
        context, numbers = self.context, [as_number(self.context, argument) for argument in arguments]
        if any(abs(number) > 10**30 for number in numbers):
            raise UndefinedError("an argument out of reach")
        return context.sin(seed + 3 * sum(numbers)) + sum(context.cos(number / 7) for number in numbers) * (
            seed % 89 + 2
        )

    def trigonometric(self, kind: str, argument: Expression) -> Value:
        value = self.value(argument)
        if kind == "degrees":
            return self.checked(as_number(self.context, value) * self.context.pi / 180)
        number = as_number(self.context, value)
        if abs(number) > 10**30:
            raise UndefinedError("an angle out of reach")
        try:
            return self.checked(getattr(self.context, kind)(number))
        except (ArithmeticError, ValueError) as error:
            raise UndefinedError(f"{kind}: {error}") from error
