"""Choose the prefixes from which the responses of a group are continued.

Whether a prefix is chosen depends only on the prefix itself and on the other responses, never on its outcome or on what
follows it, except for the token that shows that its last step has ended (see the limits in docs/rl.md);
policy_rl.algorithms.tree_credit explains why. The choice therefore goes through the group step by step:
first the prefixes that end with the first step of a response, then those that end with the second step, and so on. At
each step, it takes the prefixes about which the policy or the PRM is least certain, as long as the budget lasts. The
budget is charged with the maximum length of the continuations, because their real length is not known yet.

The steps of an episode are its turns. Tokens of observations, which lie between them, belong to no step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from policy_rl.graded import GradedGroup
from policy_rl.rewards.cutter import StepCutter
from policy_rl.rollouts.config import BranchingConfig


@dataclass(frozen=True, slots=True)
class ChosenPrefix:
    """Describes a prefix that could be continued: the first `tokens` tokens of a response, which end with `step`.

    `score` is the PRM's score of this step, or None. `certainty` is lowest for the prefixes to choose first.
    """

    response: int
    step: int
    tokens: int
    score: float | None
    certainty: float


def _surprisal(logprobs_T: np.ndarray, score: float | None, config: BranchingConfig) -> float:
    return float(logprobs_T.mean())


def _undecided(logprobs_T: np.ndarray, score: float | None, config: BranchingConfig) -> float | None:
    return abs(score - 0.5) if score is not None and config.min_score <= score <= config.max_score else None


RULES: dict[str, Callable[[np.ndarray, float | None, BranchingConfig], float | None]] = {
    "surprisal": _surprisal,
    "undecided": _undecided,
    "first": lambda logprobs_T, score, config: 0.0,
}
"""Functions that return the certainty of a prefix, or None if it must not be chosen, keyed by branching.choose.

They read only the log-probabilities of the tokens of its last step, and the step's score.
"""


def choose_prefixes(
    group: GradedGroup,
    cutter: StepCutter,
    config: BranchingConfig,
    max_tokens_after: Callable[[ChosenPrefix], int],
    budget: int,
) -> list[ChosenPrefix]:
    """Choose the prefixes of a group's responses to continue, ordered by response and length.

    `max_tokens_after` returns the maximum number of tokens that are generated after a prefix, and `budget` limits those
    of all continuations of the group together.
    """
    found = [each for index in range(len(group.responses)) for each in _candidates(group, index, cutter, config)]
    found.sort(key=lambda each: (each.step, each.certainty, each.response))
    chosen: list[ChosenPrefix] = []
    for _, of_step in groupby(found, key=lambda each: each.step):
        taken = 0
        for each in of_step:
            cost = config.continuations * max_tokens_after(each)
            if taken < config.max_per_step and cost <= budget:
                chosen.append(each)
                taken, budget = taken + 1, budget - cost
    return sorted(chosen, key=lambda each: (each.response, each.tokens))


def _candidates(group: GradedGroup, index: int, cutter: StepCutter, config: BranchingConfig) -> Iterator[ChosenPrefix]:
    """Yield the prefixes of a response from which it may be continued; each ends with a step other than the last.

    Yields nothing if the reward of the response is unknown.
    """
    each = group.responses[index]
    if each.reward.total is None:
        return
    _, step_of_token = cutter.cut(each.response)
    scores = each.process.scores if each.process else ()
    for step in range(step_of_token.max(initial=0)):
        own = np.flatnonzero(step_of_token == step)
        score = scores[step] if step < len(scores) else None
        certainty = RULES[config.choose](each.response.logprobs[own], score, config)
        if certainty is not None:
            yield ChosenPrefix(index, step, int(own[-1]) + 1, score, certainty)
