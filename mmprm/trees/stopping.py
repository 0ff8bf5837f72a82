"""Decide how many rollouts to sample from a state, and estimate its value without the bias of outcome-dependent
stopping.

Rollouts are sampled from a state in batches. The first batch is just large enough to declare the state failed if all of
its rollouts are incorrect. If any rollout is correct, small batches follow until the value is known precisely enough.
The sizes and counts of a state's batches are sufficient to remove the bias later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field

from mmprm.config import Config
from mmprm.types import Counts


class StoppingRule(Config):
    """Configures when to stop sampling rollouts from a state.

    With `false_negative_rate=0` and `min_shared_rollouts=null`, `rollouts` rollouts are sampled at once from every
    state. MM-PRM does this with 16.
    """

    rollouts: int = Field(20, ge=1)
    """Maximum number of rollouts per state (K); the root always gets all K. MM-PRM uses 16."""
    false_negative_rate: float = Field(0.006, ge=0, lt=0.5)
    """Maximum probability of wrongly declaring a state failed. A failed state is one from which no correct answer can
    be reached. A state is declared failed when all of its rollouts are incorrect and its probability of being
    recoverable is below this rate. With the defaults this takes at least 16 incorrect rollouts. 0 samples all rollouts
    for every state."""
    prior_reset: float = Field(0.1, ge=0, le=1)
    """Prior probability that a recoverable state's value is unrelated to that of its nearest recoverable ancestor."""
    max_posterior_std: float = Field(0.17, ge=0, lt=0.5)
    """Standard deviation of the value's Beta posterior at or below which sampling stops. The first batches under the
    default `false_negative_rate` already satisfy it. Smaller values give more precise labels but take further
    batches."""
    batch: int = Field(4, ge=1)
    """Number of rollouts in each batch after the first."""
    min_shared_rollouts: int | None = Field(5, ge=2)
    """Number of rollouts in another state's batch that must pass through a prefix, step for step, for the prefix to be
    labeled. Such a prefix is not sampled from; null samples from every prefix."""

    stops_at_success: ClassVar[bool] = False
    """Whether sampling from a state stops at its first correct rollout."""


class FirstErrorRule(StoppingRule):
    """Configures when to stop sampling if only the first error of a given solution is wanted.

    Rollouts are sampled in batches of `batch`. One correct rollout proves that the state is recoverable and ends the
    sampling; as many incorrect ones as in StoppingRule declare it failed. The value is not estimated, so
    `max_posterior_std` has no effect.
    """

    stops_at_success: ClassVar[bool] = True


def rule_of(config: dict[str, Any]) -> StoppingRule:
    """Return the stopping rule with which a store's batches were sampled, given the store's configuration."""
    search = {"prior_reset": 0.0} | config["search"]  # older stores lack this key
    mode = (config.get("solutions") or {}).get("mode")
    kind = FirstErrorRule if mode == "first_error" else StoppingRule
    return kind(**{name: search[name] for name in StoppingRule.model_fields})


def recovery_probability(failures: int, ancestor: Counts, prior_reset: float) -> float:
    """Return the probability that a state is recoverable although all of its n = `failures` rollouts are incorrect.

    It is L / (1 + L), where L = (1 − s) · B(a, b + n) / B(a, b) + s / (1 + n) is the likelihood of n incorrect rollouts
    from a recoverable state. The prior odds are even, as in bisection. From a failed state, no rollout succeeds. The
    prior for a recoverable state's value is the posterior of its nearest recoverable ancestor, Beta(a, b) =
    Beta(1 + correct, 1 + incorrect). With probability s = `prior_reset`, it is flat instead: policies
    occasionally correct an error later, regardless of the value before it.
    """
    a, b = 1 + ancestor.correct, 1 + ancestor.incorrect
    likelihood = math.prod((b + i) / (a + b + i) for i in range(failures))
    likelihood = (1 - prior_reset) * likelihood + prior_reset / (1 + failures)
    return likelihood / (1 + likelihood)


@lru_cache(maxsize=100_000)
def first_batch_size(ancestor: Counts, rule: StoppingRule) -> int:
    """Return the size of a state's first batch: the number of incorrect rollouts after which the state is declared
    failed.

    This is the smallest number of incorrect rollouts after which P(recoverable) is below `rule.false_negative_rate`.
    """
    sizes = (
        n
        for n in range(1, rule.rollouts)
        if recovery_probability(n, ancestor, rule.prior_reset) < rule.false_negative_rate
    )
    return next(sizes, rule.rollouts)


def posterior_deviation(correct: int, incorrect: int) -> float:
    """Return the standard deviation of Beta(1 + correct, 1 + incorrect), the posterior of a value under a flat
    prior."""
    a, b = 1 + correct, 1 + incorrect
    return math.sqrt(a * b / (a + b + 1)) / (a + b)


def next_batch_size(first: int, sampled: Counts, rule: StoppingRule) -> int:
    """Return the size of the next batch, given the verdict counts `sampled`, or 0 if no more rollouts are needed.

    `first` is the size of the first batch: after this many incorrect rollouts and no correct one, the state is declared
    failed.
    """
    remaining = rule.rollouts - sampled.known - sampled.unknown
    if sampled.correct == 0:
        wanted = max(first - sampled.incorrect, 0)
        wanted = min(wanted, rule.batch) if rule.stops_at_success else wanted
    elif rule.stops_at_success:
        wanted = 0
    else:
        wanted = 0 if posterior_deviation(sampled.correct, sampled.incorrect) <= rule.max_posterior_std else rule.batch
    return min(wanted, remaining)


def unbiased(batches: Sequence[Counts], rule: StoppingRule) -> Counts:
    """Return the total verdict counts of a state's batches, with an unbiased estimate of its value.

    Under a stopping rule, correct / known is biased, but the outcome of the first known rollout is not. Nor is its
    expectation given everything else (Rao-Blackwell). Consider all outcome orders that the rule lets end with these
    batch sizes and this many correct rollouts. The expectation is the share of these orders in which the first rollout
    is correct (Girshick, Mosteller and Savage, 1946). Unknown verdicts are assumed to be missing at random.

    Under FirstErrorRule, the counts are returned as they are, because only whether a rollout is correct matters.
    """
    total = sum(batches, Counts())
    if len(batches) == 1 or not total.known or rule.stops_at_success:
        return total
    shape = tuple((batch.known, batch.unknown) for batch in batches)
    return Counts(total.correct, total.incorrect, total.unknown, _first_correct(shape, total.correct, rule))


@lru_cache(maxsize=100_000)
def _first_correct(shape: tuple[tuple[int, int], ...], correct: int, rule: StoppingRule) -> float:
    """Return, among the outcome orders that the stopping rule allows, the fraction in which the first known rollout is
    correct.

    After each batch, orders are counted by their number of correct rollouts: all orders, and those that begin with a
    correct rollout.
    """
    first = sum(shape[0])
    begin = next(number for number, (known, _) in enumerate(shape) if known)
    known = unknown = 0
    orders, began = {0: 1}, {0: 0}
    for number, (size, lost) in enumerate(shape):
        if number:
            continued = {
                r for r in orders if next_batch_size(first, Counts(r, known - r, unknown), rule) == size + lost
            }
            orders = {r: count for r, count in orders.items() if r in continued}
            began = {r: count for r, count in began.items() if r in continued}
        first_is_correct = {r: math.comb(size - 1, r - 1) for r in range(1, size + 1)}
        began = first_is_correct if number == begin else _add_batch(began, size)
        orders = _add_batch(orders, size)
        known, unknown = known + size, unknown + lost
    return began.get(correct, 0) / orders[correct]


def _add_batch(orders: dict[int, int], size: int) -> dict[int, int]:
    after: dict[int, int] = {}
    for correct, count in orders.items():
        for more in range(size + 1):
            after[correct + more] = after.get(correct + more, 0) + count * math.comb(size, more)
    return after
