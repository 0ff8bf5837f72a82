"""Define the outcomes of comparing two answers."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable


class Outcome(enum.Enum):
    """Lists the possible outcomes of a comparison; each value is a human-readable reason."""

    SAME = "same value"
    DIFFERENT = "different value"
    UNDECIDED = "symbols cannot decide"


SAME, DIFFERENT, UNDECIDED = Outcome.SAME, Outcome.DIFFERENT, Outcome.UNDECIDED

SymbolTest = Callable[[str, str], Outcome]
"""Function that compares the gold answer with an answer if the grader's own parser or evaluator fails."""


def all_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Return SAME if all outcomes are SAME, DIFFERENT if any is DIFFERENT, and UNDECIDED otherwise."""
    outcomes = list(outcomes)
    return DIFFERENT if DIFFERENT in outcomes else UNDECIDED if UNDECIDED in outcomes else SAME


def any_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Return SAME if any outcome is SAME, else UNDECIDED if any is UNDECIDED, else DIFFERENT."""
    outcomes = list(outcomes)
    return SAME if SAME in outcomes else UNDECIDED if UNDECIDED in outcomes else DIFFERENT
