"""Evaluate integer expressions modulo a prime, to distinguish numbers with too many digits to write out.

9^(9^9) and 9^(9^9) + 1 agree in their first 369 million digits, but not modulo a large prime.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from mmprm.grading.atoms import Expression
from mmprm.grading.evaluation import evaluate_expression
from mmprm.grading.operations import UndefinedError

PRIMES = (2**61 - 1, 2**89 - 1)

_OPERATIONS: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, p: (a + b) % p,
    "multiply": lambda a, b, p: a * b % p,
    "divide": lambda a, b, p: a * pow(b, -1, p) % p,
}


def differ(one: Expression, other: Expression) -> bool:
    """Return whether two rational expressions differ modulo a prime, or False if their residues are undefined."""
    for prime in PRIMES:
        try:
            if _residue(one, prime) != _residue(other, prime):
                return True
        except (UndefinedError, ValueError):  # no residue, or no inverse
            continue
    return False


def _residue(node: Expression, prime: int) -> int:
    kind = node[0]
    if kind == "number":
        return node[1].numerator * pow(node[1].denominator, -1, prime) % prime
    if kind == "negative":
        return -_residue(node[1], prime) % prime
    if kind in _OPERATIONS:
        return _OPERATIONS[kind](_residue(node[1], prime), _residue(node[2], prime), prime)
    if kind == "power":
        exponent = evaluate_expression(node[2], {})
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return pow(_residue(node[1], prime), exponent.numerator, prime)
    raise UndefinedError(f"no residue of {kind}")
