"""Choose the order of problems, the length of responses, and the groups to train on.

Functions are pure, and dataclasses are frozen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.types import Problem
from policy_rl.graded import GradedGroup

MIN_RATE = 0.25
"""Lower bound on the estimated filter pass rate: a round samples at most 1/MIN_RATE times the number of missing
groups."""


class FilterConfig(Config):
    """Configures the filter that selects groups to train on by their mean accuracy."""

    low: float = Field(0.1, ge=0, le=1)
    """Minimum mean accuracy for a group to be used in training."""
    high: float = Field(0.9, ge=0, le=1)
    """Maximum mean accuracy for a group to be used in training."""
    rounds: int = Field(3, ge=1)
    """Maximum number of sampling rounds per step. After these, the step trains on the groups it has, with a warning."""

    @model_validator(mode="after")
    def _in_order(self) -> FilterConfig:
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not exceed high={self.high}; lower low or raise high")
        return self

    def verdict(self, group: GradedGroup) -> str | None:
        """Return why a group is dropped (too_hard or too_easy), or None if it is kept."""
        mean = sum(group.accuracies) / max(1, len(group.accuracies))
        return "too_hard" if mean < self.low else "too_easy" if mean > self.high else None


def groups_to_ask(missing: int, passed: int, seen: int, most: int) -> int:
    """Return how many groups to sample in the next round: ceil(missing / rate), capped at `most`.

    rate = passed / seen is the pass rate so far, at least MIN_RATE; it is 1 in the first round.
    """
    rate = max(MIN_RATE, passed / seen) if seen else 1.0
    return min(most, math.ceil(missing / rate))


def update_count(groups: int, prompts: int, updates: int) -> int:
    """Return the number of optimizer updates for a step with `groups` groups.

    A complete step of `prompts` groups makes `updates` updates of at least prompts // updates groups each. With fewer
    groups there are fewer updates of the same size, or a single smaller one.
    """
    return min(updates, max(1, groups // (prompts // updates)), groups)


class Phase(Config):
    """Configures one phase of a progressive schedule (PTST): many short responses first, then fewer, longer ones."""

    steps: int = Field(ge=1)
    """Number of steps in this phase. The last phase lasts until the end of the run."""
    group_size: int = Field(ge=1)
    """Number of responses per problem."""
    max_tokens: int = Field(ge=1)
    """Maximum number of tokens per response."""


def phase_of(schedule: Sequence[Phase], step: int) -> Phase:
    """Return the schedule's phase for a step. Steps are numbered from 1."""
    for phase in schedule[:-1]:
        if step <= phase.steps:
            return phase
        step -= phase.steps
    return schedule[-1]


class Prompts:
    """Iterates over the problems endlessly, reshuffling them with the seed in each epoch.

    Its state is `position`, the number of problems taken, and `again`, earlier positions to take again first.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems, self.position = problems, 0
        self.again: list[int] = []
        self._seed = seed
        self._epoch, self._order = -1, list[int]()

    def take(self, n: int) -> list[tuple[Problem, int]]:
        """Return the next n problems as (problem, epoch) pairs. Epochs are numbered from 0."""
        return [self.at(position) for position in self.reserve(n)]

    def reserve(self, n: int) -> list[int]:
        """Return the positions of the next n problems, and advance beyond them."""
        positions, self.again = self.again[:n], self.again[n:]
        new = n - len(positions)
        self.position += new
        return [*positions, *range(self.position - new, self.position)]

    def at(self, position: int) -> tuple[Problem, int]:
        """Return the problem at a position, and its epoch."""
        epoch, index = divmod(position, len(self.problems))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.problems)))
            random.Random(f"prompts/{self._seed}/{epoch}").shuffle(self._order)
        return self.problems[self._order[index]], epoch
