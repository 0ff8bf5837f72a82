"""Select the groups to train on, the order of problems and the length of responses.

Functions are pure, and data is frozen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.types import Problem
from policy_rl.graded import GradedGroup

LEAST_RATE = 0.25
"""Lower bound of the pass rate: a round samples at most 1/LEAST_RATE times the missing groups, even if fewer passed
before."""


class FilterConfig(Config):
    """Configure which groups are trained on by their mean accuracy."""

    low: float = Field(0.1, ge=0, le=1)
    """Minimum mean accuracy of a group that is trained on."""
    high: float = Field(0.9, ge=0, le=1)
    """Maximum mean accuracy of a group that is trained on."""
    rounds: int = Field(3, ge=1)
    """Maximum rounds of sampling per step; after them the step trains on the groups it has, with a warning."""

    @model_validator(mode="after")
    def _in_order(self) -> FilterConfig:
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not exceed high={self.high}; lower low or raise high")
        return self

    def verdict(self, group: GradedGroup) -> str | None:
        """Return why a group is dropped (too_hard or too_easy), or None."""
        mean = sum(group.accuracies) / max(1, len(group.accuracies))
        return "too_hard" if mean < self.low else "too_easy" if mean > self.high else None


def groups_to_ask(missing: int, passed: int, seen: int, most: int) -> int:
    """Return the number of groups of the next round: missing / rate, at most `most`.

    rate = passed / seen so far, at least LEAST_RATE; 1 in the first round.
    """
    rate = max(LEAST_RATE, passed / seen) if seen else 1.0
    return min(most, math.ceil(missing / rate))


def update_count(groups: int, prompts: int, updates: int) -> int:
    """Return the number of updates of a step.

    A complete step of `prompts` groups makes `updates` updates of at least prompts // updates groups each. With fewer
    groups there are fewer updates of the same size, or a single smaller update if there are too few groups for that.
    """
    return min(updates, max(1, groups // (prompts // updates)), groups)


class Phase(Config):
    """Configure a phase of a progressive schedule (PTST): first many short responses, then fewer and longer ones."""

    steps: int = Field(ge=1)
    """Steps of this phase; the last phase lasts until the end of the run."""
    group_size: int = Field(ge=1)
    """Responses per problem."""
    max_tokens: int = Field(ge=1)
    """Maximum tokens per response."""


def phase_of(schedule: Sequence[Phase], step: int) -> Phase:
    """Return the phase of step 1, 2, …"""
    for phase in schedule[:-1]:
        if step <= phase.steps:
            return phase
        step -= phase.steps
    return schedule[-1]


class Prompts:
    """Yield problems in an order that is reshuffled with the seed in each epoch.

    The state is `position`, the number of problems taken.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems, self.position = problems, 0
        self._seed = seed
        self._epoch, self._order = -1, list[int]()

    def take(self, n: int) -> list[tuple[Problem, int]]:
        """Return the next n problems, each with its epoch 0, 1, …"""
        return [self._next() for _ in range(n)]

    def _next(self) -> tuple[Problem, int]:
        epoch, position = divmod(self.position, len(self.problems))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.problems)))
            random.Random(f"prompts/{self._seed}/{epoch}").shuffle(self._order)
        self.position += 1
        return self.problems[self._order[position]], epoch
