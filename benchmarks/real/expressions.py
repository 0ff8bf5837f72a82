"""Represent a problem's arithmetic expression, and list the values that a correct solution can compute.

Sums may be added and products multiplied in any order, and a factor may be distributed over a sum. A value is
legitimate if one of these orders computes it.
"""

from __future__ import annotations

import itertools
import math
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


def number(value: int) -> Number:
    return Number(Fraction(value))


def apply(left: Expression, operation: str, right: Expression) -> Expression:
    """Return `left operation right`, extending a sum by a term or a product by a factor where possible."""
    kind, sign = (Sum if operation in "+-" else Product), (1 if operation in "+*" else -1)
    parts = (left.terms if kind is Sum else left.factors) if isinstance(left, kind) else ((1, left),)
    return kind((*parts, (sign, right)))


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
        found |= _distributed(expression)
    return found


def _distributed(product: Product) -> set[Fraction]:
    """Return the values of a product whose factors are distributed over one of its sums."""
    found: set[Fraction] = set()
    for position, (exponent, factor) in enumerate(product.factors):
        if isinstance(factor, Sum) and exponent == 1:
            others = product.factors[:position] + product.factors[position + 1 :]
            terms = tuple((sign, Product(((1, term), *others))) for sign, term in factor.terms)
            found |= legitimate_values(Sum(terms))
    return found
