"""What a comparison of two answers comes to."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable


class Outcome(enum.Enum):
    SAME = "same value"
    DIFFERENT = "different value"
    UNDECIDED = "symbols cannot decide"


SAME, DIFFERENT, UNDECIDED = Outcome.SAME, Outcome.DIFFERENT, Outcome.UNDECIDED

SymbolTest = Callable[[str, str], Outcome]
"""Compares two expressions that the grader's own reading of mathematics does not cover, gold first."""


def all_of(outcomes: Iterable[Outcome]) -> Outcome:
    """SAME if all are; DIFFERENT if one is."""
    outcomes = list(outcomes)
    return DIFFERENT if DIFFERENT in outcomes else UNDECIDED if UNDECIDED in outcomes else SAME


def any_of(outcomes: Iterable[Outcome]) -> Outcome:
    """SAME if one is; UNDECIDED if that is open."""
    outcomes = list(outcomes)
    return SAME if SAME in outcomes else UNDECIDED if UNDECIDED in outcomes else DIFFERENT
