"""How many rollouts a state gets, and its value without the bias of having stopped by outcome.

A state is drawn from in batches. The first is as large as it takes to call the state broken if every rollout of it
fails; after a right one further small batches follow until the value is known narrowly enough. The sizes of a state's
batches and their counts are all that is needed to undo the bias later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field

from mmprm.config import Config
from mmprm.types import Counts


class StoppingRule(Config):
    """With `doubt` 0 and `shared` null every state gets `rollouts` of its own at once; with 16 of them as in MM-PRM."""

    rollouts: int = Field(20, ge=1)
    """Most rollouts drawn from a state (K); the root gets all of them. MM-PRM has 16."""
    doubt: float = Field(0.006, ge=0, lt=0.5)
    """A state is called broken when the probability that it is sound, none of its rollouts being right, is below this:
    by default after 16 failures or more. 0 takes all rollouts for every state."""
    surprise: float = Field(0.1, ge=0, le=1)
    """Probability that the value of a sound state has nothing to do with that of the sound state before it."""
    width: float = Field(0.17, ge=0, lt=0.5)
    """A value is narrow enough when the standard deviation of its Beta posterior is below this. The first batches that
    the default `doubt` asks for are; smaller widths buy narrower labels with further batches."""
    batch: int = Field(4, ge=1)
    """Rollouts of each further batch."""
    shared: int | None = Field(5, ge=2)
    """A prefix that so many rollouts of other states run through, step by step the same, is labelled by them and not
    drawn from; null asks each prefix anew."""


def rule_of(config: dict[str, Any]) -> StoppingRule:
    """The rule under which the batches of a store with this configuration were drawn."""
    search = {"surprise": 0.0} | config["search"]  # stores from before there was any
    return StoppingRule(**{name: search[name] for name in StoppingRule.model_fields})


def probability_sound(failures: int, ancestor: Counts, surprise: float) -> float:
    """P(sound | all n `failures` rollouts failed) = L / (1 + L), L = (1 − s) · B(a, b + n) / B(a, b) + s / (1 + n).

    Even odds beforehand, as bisection asks; broken: no rollout succeeds; sound: the value has the posterior of the
    nearest sound ancestor, Beta(a, b) = Beta(1 + right, 1 + wrong), or with probability s = `surprise` a flat one: some
    errors are mended now and then, whatever the value was before them.
    """
    a, b = 1 + ancestor.right, 1 + ancestor.wrong
    likelihood = math.prod((b + i) / (a + b + i) for i in range(failures))
    likelihood = (1 - surprise) * likelihood + surprise / (1 + failures)
    return likelihood / (1 + likelihood)


@lru_cache(maxsize=100_000)
def first_draws(ancestor: Counts, rule: StoppingRule) -> int:
    """Size of a state's first batch: the fewest failures that leave less than `rule.doubt` that it is sound."""
    sizes = (n for n in range(1, rule.rollouts) if probability_sound(n, ancestor, rule.surprise) < rule.doubt)
    return next(sizes, rule.rollouts)


def posterior_deviation(right: int, wrong: int) -> float:
    """Standard deviation of Beta(1 + right, 1 + wrong), the posterior under a flat prior."""
    a, b = 1 + right, 1 + wrong
    return math.sqrt(a * b / (a + b + 1)) / (a + b)


def next_draws(first: int, drawn: Counts, rule: StoppingRule) -> int:
    """Size of the batch that follows `drawn`, 0 when it is enough. `first` is the size of the first batch: so many
    known failures without a success settle that the state is broken."""
    room = rule.rollouts - drawn.known - drawn.unknown
    if drawn.right == 0:
        wanted = max(first - drawn.wrong, 0)
    else:
        wanted = 0 if posterior_deviation(drawn.right, drawn.wrong) <= rule.width else rule.batch
    return min(wanted, room)


def unbiased(batches: Sequence[Counts], rule: StoppingRule) -> Counts:
    """The sum of a state's batches, with the unbiased estimate of its value.

    Under a stopping rule right / known is biased, but the first known rollout alone is not, nor is its mean given
    everything else (Rao and Blackwell): over all orders of outcomes that the rule lets end with these batch sizes and
    this many right ones, the share of those whose first rollout is right (Girshick, Mosteller and Savage, 1946).
    Unknown verdicts are taken as missing at random.
    """
    total = sum(batches, Counts())
    if len(batches) == 1 or not total.known:
        return total
    shape = tuple((batch.known, batch.unknown) for batch in batches)
    return Counts(total.right, total.wrong, total.unknown, _first_right(shape, total.right, rule))


@lru_cache(maxsize=100_000)
def _first_right(shape: tuple[tuple[int, int], ...], right: int, rule: StoppingRule) -> float:
    """Orders are counted by the number of right ones after each batch: all, and those that began with a right one."""
    first = sum(shape[0])
    begin = next(number for number, (known, _) in enumerate(shape) if known)
    known = unknown = 0
    orders, began = {0: 1}, {0: 0}
    for number, (size, lost) in enumerate(shape):
        if number:
            going_on = {r for r in orders if next_draws(first, Counts(r, known - r, unknown), rule) == size + lost}
            orders = {r: count for r, count in orders.items() if r in going_on}
            began = {r: count for r, count in began.items() if r in going_on}
        one_right = {r: math.comb(size - 1, r - 1) for r in range(1, size + 1)}
        began = one_right if number == begin else _draw(began, size)
        orders = _draw(orders, size)
        known, unknown = known + size, unknown + lost
    return began.get(right, 0) / orders[right]


def _draw(orders: dict[int, int], size: int) -> dict[int, int]:
    after: dict[int, int] = {}
    for right, count in orders.items():
        for more in range(size + 1):
            after[right + more] = after.get(right + more, 0) + count * math.comb(size, more)
    return after
