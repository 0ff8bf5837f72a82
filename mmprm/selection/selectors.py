"""Choosing one answer among the sampled solutions of a problem: a table of rules with their exact expected accuracy.

A selector sees candidates in draw order and returns the probability that its choice is correct, where ties are broken
evenly, so that no random number is drawn. A candidate counts as correct only when its verdict is CORRECT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Selector = Callable[[Sequence["Choice"]], float]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a selector may see of a candidate: `answer` (None where none was found), `reward` (the aggregate of its
    step scores, -inf where it could not be scored) and `weight` in [0, 1] for votes; and `correct`, which only the
    oracle uses to choose."""

    answer: str | None
    correct: bool
    reward: float = -math.inf
    weight: float = 0.0


def random(choices: Sequence[Choice]) -> float:
    """One of the candidates, each as likely: (1/N) Σ correct."""
    return sum(choice.correct for choice in choices) / len(choices)


def first(choices: Sequence[Choice]) -> float:
    """The candidate drawn first."""
    return float(choices[0].correct)


def best_of_n(choices: Sequence[Choice]) -> float:
    """The candidate of highest reward."""
    highest = max(choice.reward for choice in choices)
    return random([choice for choice in choices if choice.reward == highest])


def majority(choices: Sequence[Choice]) -> float:
    """The answer that most candidates give (self-consistency); candidates without an answer do not vote."""
    return _vote(choices, lambda choice: 1.0)


def weighted(choices: Sequence[Choice]) -> float:
    """The answer whose candidates' weights have the highest sum."""
    return _vote(choices, lambda choice: choice.weight)


def oracle(choices: Sequence[Choice]) -> float:
    """A correct candidate where there is one (pass@N): the ceiling of every rule."""
    return float(any(choice.correct for choice in choices))


SELECTORS: dict[str, Selector] = {
    "random": random,
    "first": first,
    "majority": majority,
    "prm": best_of_n,
    "weighted": weighted,
    "oracle": oracle,
}


def _vote(choices: Sequence[Choice], weight: Callable[[Choice], float]) -> float:
    """Expected accuracy of a vote by answer. Candidates that share an answer share its fate: where their verdicts
    differ (an answer graded UNKNOWN once), the answer counts as the share of them that is correct."""
    voters: dict[str, list[Choice]] = {}
    for choice in choices:
        if choice.answer is not None:
            voters.setdefault(choice.answer, []).append(choice)
    if not voters:
        return random(choices)
    votes = {answer: math.fsum(map(weight, group)) for answer, group in voters.items()}
    most = max(votes.values())
    winners = [random(voters[answer]) for answer, votes_of in votes.items() if votes_of == most]
    return sum(winners) / len(winners)
