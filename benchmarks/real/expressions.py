"""Represent a problem's arithmetic expression, and list the operations that a correct solution can perform.

Sums may be added and products multiplied in any order, and a factor may be distributed over a sum. An operation or
value is legitimate if it occurs in one of these orders.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Number:
    """Represents a number that the problem states."""

    value: Fraction


@dataclass(frozen=True)
class Sum:
    """Represents a sum of (sign, term) pairs. A sign is 1 or -1."""

    terms: tuple[tuple[int, Expression], ...]

    @property
    def value(self) -> Fraction:
        return sum((sign * term.value for sign, term in self.terms), Fraction(0))


@dataclass(frozen=True)
class Product:
    """Represents a product of (exponent, factor) pairs. An exponent is 1, or -1 for a divisor."""

    factors: tuple[tuple[int, Expression], ...]

    @property
    def value(self) -> Fraction:
        return math.prod((factor.value**exponent for exponent, factor in self.factors), start=Fraction(1))


Expression = Number | Sum | Product

Operation = tuple[str, Fraction, Fraction]
"""Represents one operation: its sign (+, -, * or /) and two operands, which are sorted if their order is irrelevant."""


def number(value: int) -> Number:
    return Number(Fraction(value))


def apply(left: Expression, operation: str, right: Expression) -> Expression:
    """Return `left operation right`, extending a sum by a term or a product by a factor where possible."""
    kind, sign = (Sum if operation in "+-" else Product), (1 if operation in "+*" else -1)
    parts = (left.terms if kind is Sum else left.factors) if isinstance(left, kind) else ((1, left),)
    return kind((*parts, (sign, right)))


def operation(sign: str, left: Fraction, right: Fraction) -> Operation:
    """Return the operation `left sign right`, sorting operands whose order is irrelevant."""
    return (sign, *sorted((left, right))) if sign in "+*" else (sign, left, right)


def legitimate_operations(expression: Expression) -> set[Operation]:
    """Return every operation that combines two parts of the expression, or two partial sums or products of it."""
    if isinstance(expression, Number):
        return set()
    parts = expression.terms if isinstance(expression, Sum) else expression.factors
    found = set().union(*(legitimate_operations(part) for _, part in parts))
    combine = _terms_combined if isinstance(expression, Sum) else _factors_combined
    for left, right in _disjoint(parts):
        found |= combine(left, right)
    if isinstance(expression, Product):
        found = found.union(*(legitimate_operations(each) for each in _distributed(expression)))
    return found


def _disjoint(parts: tuple) -> Iterator[tuple[tuple, tuple]]:
    """Yield all pairs of disjoint, nonempty selections of parts."""
    for owners in itertools.product((0, 1, 2), repeat=len(parts)):
        left, right = (tuple(part for part, owner in zip(parts, owners, strict=True) if owner == o) for o in (1, 2))
        if left and right:
            yield left, right


def _terms_combined(left: tuple, right: tuple) -> set[Operation]:
    """Return the operations that combine two partial sums, such as 8 + 5, 8 - 5, or 3 + 5 if both are subtracted."""
    first, second = Sum(left).value, Sum(right).value
    if (first >= 0) == (second >= 0):
        return {operation("+", abs(first), abs(second))}
    return {operation("-", abs(first), abs(second)), operation("-", abs(second), abs(first))}


def _factors_combined(left: tuple, right: tuple) -> set[Operation]:
    """Return the operation that combines two partial products. The product of divisors alone divides the other."""
    (first, divides), (second, divides_too) = (_partial_product(each) for each in (left, right))
    if divides == divides_too:
        return {operation("*", first, second)}
    return {operation("/", second, first) if divides else operation("/", first, second)}


def _partial_product(factors: tuple) -> tuple[Fraction, bool]:
    """Return (value, whether it is a divisor) of some factors of a product."""
    value = Product(factors).value
    divides = all(exponent == -1 for exponent, _ in factors)
    return (1 / value if divides else value), divides


def legitimate_values(expression: Expression) -> set[Fraction]:
    """Return the values of the expression, its parts, and all its partial sums and products.

    A partial sum counts with its absolute value: from a - b - c, a solution may first compute b + c.
    """
    if isinstance(expression, Number):
        return {expression.value}
    parts = expression.terms if isinstance(expression, Sum) else expression.factors
    found = set().union(*(legitimate_values(part) for _, part in parts))
    for size in range(2, len(parts) + 1):
        for subset in itertools.combinations(parts, size):
            found.add(abs(type(expression)(subset).value))
    if isinstance(expression, Product):
        found = found.union(*(legitimate_values(each) for each in _distributed(expression)))
    return found


def _distributed(product: Product) -> Iterator[Sum]:
    """Yield the sums that result from distributing the other factors of a product over one of its sums."""
    for position, (exponent, factor) in enumerate(product.factors):
        if isinstance(factor, Sum) and exponent == 1:
            others = product.factors[:position] + product.factors[position + 1 :]
            terms = tuple((sign, Product(((1, term), *others))) for sign, term in factor.terms)
            yield Sum(terms)
