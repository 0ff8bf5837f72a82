"""Choose one answer among a problem's sampled solutions, using selectors with exact expected accuracies.

A selector receives subsets of the candidates of many problems at once. For each subset, it returns the probability that
its choice is correct when ties are broken uniformly, so no random numbers are needed. A candidate counts as correct
only if its verdict is CORRECT.

Shapes: P problem, M candidate of a problem (in sampling order), B subset of the candidates, A answer of a problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmprm.metrics import Floats

Bools = NDArray[np.bool_]
Selector = Callable[["Choices", Bools], Floats]

TIE = 1e-12
"""Relative tolerance within which vote sums count as equal, because the order of addition causes rounding errors."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Holds the candidates from which a selector chooses, for P problems with M candidates each.

    `answer_PM` numbers a problem's distinct answers from 0; -1 means no answer. `reward_PM` is the aggregate of the
    step scores, or -inf if the candidate could not be scored. `weight_PM` in [0, 1] weights votes. Only the oracle may
    use `correct_PM` for its choice.
    """

    answer_PM: NDArray[np.intp]
    correct_PM: Bools
    reward_PM: Floats
    weight_PM: Floats

    def of(self, problems: slice) -> Choices:
        """Return the choices for a slice of the problems."""
        return Choices(
            self.answer_PM[problems], self.correct_PM[problems], self.reward_PM[problems], self.weight_PM[problems]
        )


def random(choices: Choices, inside_BM: Bools) -> Floats:
    """Choose uniformly at random; the expected accuracy is the fraction of candidates that are correct."""
    return choices.correct_PM @ inside_BM.T.astype(float) / inside_BM.sum(axis=1)


def first(choices: Choices, inside_BM: Bools) -> Floats:
    """Choose the candidate that was sampled first."""
    return choices.correct_PM[:, inside_BM.argmax(axis=1)].astype(float)


def best_of_n(choices: Choices, inside_BM: Bools) -> Floats:
    """Choose the candidate with the highest reward."""
    reward_P1M = choices.reward_PM[:, None]
    highest_PB1 = np.where(inside_BM, reward_P1M, -np.inf).max(axis=2, keepdims=True)
    chosen_PBM = inside_BM & (reward_P1M == highest_PB1)
    return (chosen_PBM & choices.correct_PM[:, None]).sum(axis=2) / chosen_PBM.sum(axis=2)


def majority(choices: Choices, inside_BM: Bools) -> Floats:
    """Choose the most frequent answer (self-consistency); candidates with no answer do not vote."""
    return _vote(choices, inside_BM, np.ones_like(choices.weight_PM))


def weighted(choices: Choices, inside_BM: Bools) -> Floats:
    """Choose the answer whose candidates have the highest total weight (the reward mapped to [0, 1])."""
    return _vote(choices, inside_BM, choices.weight_PM)


def oracle(choices: Choices, inside_BM: Bools) -> Floats:
    """Choose a correct candidate if there is one (pass@N), which is an upper bound for every selector."""
    return (random(choices, inside_BM) > 0).astype(float)


SELECTORS: dict[str, Selector] = {
    "random": random,
    "first": first,
    "majority": majority,
    "prm": best_of_n,
    "weighted": weighted,
    "oracle": oracle,
}

NEEDS_SCORES = ("prm", "weighted")
"""Selectors that need step scores."""


def selector_names(scored: bool) -> list[str]:
    """Return the selectors' names in display order; with `scored=False`, only of those that need no scores."""
    return [name for name in SELECTORS if scored or name not in NEEDS_SCORES]


def _vote(choices: Choices, inside_BM: Bools, weight_PM: Floats) -> Floats:
    """Return the expected accuracy of the answer that wins the weighted vote, or of a random candidate if there are no
    votes.

    If an answer's candidates have different verdicts (for example, one was graded UNKNOWN), the answer counts as the
    fraction of them that is correct.
    """
    answers = max(1, int(choices.answer_PM.max()) + 1)
    gives_PMA = (choices.answer_PM[..., None] == np.arange(answers)).astype(float)
    inside = inside_BM.astype(float)
    voters_PBA = inside @ gives_PMA
    correct_PBA = inside @ (gives_PMA * choices.correct_PM[..., None])
    votes_PBA = np.where(voters_PBA > 0, inside @ (gives_PMA * weight_PM[..., None]), -1.0)
    wins_PBA = (voters_PBA > 0) & (votes_PBA >= votes_PBA.max(axis=2, keepdims=True) * (1 - TIE))
    share_PBA = correct_PBA / np.maximum(voters_PBA, 1)
    winners_PB = wins_PBA.sum(axis=2)
    elected_PB = (share_PBA * wins_PBA).sum(axis=2) / np.maximum(winners_PB, 1)
    return np.where(winners_PB > 0, elected_PB, random(choices, inside_BM))
