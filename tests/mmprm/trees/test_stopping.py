"""Test the stopping rule and the estimator that corrects its bias, on worked numbers and full enumerations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from mmprm.trees.stopping import (
    StoppingRule,
    first_batch_size,
    next_batch_size,
    posterior_deviation,
    recovery_probability,
    unbiased,
)
from mmprm.types import Counts

RULE = StoppingRule(rollouts=16, false_negative_rate=0.03, prior_reset=0, max_posterior_std=0.12, batch=4)


def test_probability_recoverable_by_hand() -> None:
    """With 1 of 2 correct in the ancestor, Beta(2, 2) gives L(2) = 2/4 · 3/5 = 0.3 and P = 0.3 / 1.3; a flat prior has
    L(2) = 1/3.
    """
    assert recovery_probability(0, Counts(1, 1), prior_reset=0.2) == 0.5
    assert recovery_probability(2, Counts(1, 1), prior_reset=0) == pytest.approx(0.3 / 1.3)
    mixed = 0.8 * 0.3 + 0.2 / 3
    assert recovery_probability(2, Counts(1, 1), prior_reset=0.2) == pytest.approx(mixed / (1 + mixed))


def test_first_rollouts_by_hand() -> None:
    """For Beta(2, 2), L = 0.5, 0.3, 0.2, 1/7, 3/28 …; P falls below a tenth when L < 1/9, at the fifth failure."""
    assert first_batch_size(Counts(1, 1), StoppingRule(false_negative_rate=0.1, prior_reset=0)) == 5
    assert (
        first_batch_size(Counts(15, 1), RULE)
        < first_batch_size(Counts(8, 8), RULE)
        < first_batch_size(Counts(3, 13), RULE)
    )
    assert first_batch_size(Counts(1, 15), RULE) == 16
    assert first_batch_size(Counts(16, 0), StoppingRule(rollouts=16, false_negative_rate=0)) == 16
    # L is at most s / (1 + n), so P < 0.01 requires at least 0.1 / (1 + n) < 1/99.
    assert first_batch_size(Counts(99, 0), StoppingRule(false_negative_rate=0.01, prior_reset=0.1)) == 9


def test_posterior_deviation_by_hand() -> None:
    assert posterior_deviation(0, 0) == pytest.approx(math.sqrt(1 / 12))
    assert posterior_deviation(3, 1) == pytest.approx(math.sqrt(4 * 2 / (36 * 7)))


def test_next_rollouts() -> None:
    assert next_batch_size(6, Counts(0, 6), RULE) == 0, "as many failures as requested"
    assert next_batch_size(6, Counts(0, 4, 2), RULE) == 2, "unknown verdicts are not failures"
    assert next_batch_size(6, Counts(1, 5), RULE) == 4
    assert next_batch_size(6, Counts(7, 7), RULE) == 2, "no more than the rule's rollouts"
    assert next_batch_size(6, Counts(10, 0), RULE) == 0, "narrow enough"
    assert next_batch_size(6, Counts(0, 0, 16), RULE) == 0


def runs(rule: StoppingRule, first: int, value: float) -> Iterator[tuple[float, tuple[Counts, ...]]]:
    """Return every sequence of batches that the rule can produce for a state of this value, with its probability."""

    def go_on(probability: float, batches: tuple[Counts, ...], size: int) -> Iterator[tuple[float, tuple[Counts, ...]]]:
        if not size:
            yield probability, batches
            return
        for correct in range(size + 1):
            chance = math.comb(size, correct) * value**correct * (1 - value) ** (size - correct)
            sampled = (*batches, Counts(correct, size - correct))
            yield from go_on(probability * chance, sampled, next_batch_size(first, sum(sampled, Counts()), rule))

    yield from go_on(1.0, (), first)


@pytest.mark.parametrize("value", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        StoppingRule(rollouts=9, max_posterior_std=0.14, batch=3),
        StoppingRule(rollouts=8, max_posterior_std=0.15, batch=1),
    ],
)
def test_the_estimate_is_unbiased_and_the_plain_mean_is_not(rule: StoppingRule, value: float) -> None:
    outcomes = list(runs(rule, 4, value))
    assert sum(chance for chance, _ in outcomes) == pytest.approx(1)
    assert sum(chance * unbiased(batches, rule).value for chance, batches in outcomes) == pytest.approx(value)
    if value == 0.3:
        plain = sum(chance * sum(batches, Counts()).value for chance, batches in outcomes)
        assert abs(plain - value) > 1e-3


def test_estimates_by_hand() -> None:
    """The first batch has 2 rollouts, and a third follows unless both fail or both succeed.

    One of three correct arises as R W W or W R W (W W R would have stopped), so the first is correct in one of two. Two
    of three arise as R W R or W R R, again one of two, although the plain mean is 2/3.
    """
    rule = StoppingRule(rollouts=3, batch=1, max_posterior_std=0.2)
    assert posterior_deviation(2, 0) < 0.2 < posterior_deviation(1, 1)
    assert unbiased([Counts(0, 2)], rule).value == 0
    assert unbiased([Counts(2, 0)], rule).value == 1
    assert unbiased([Counts(1, 1), Counts(0, 1)], rule) == Counts(1, 2, 0, 0.5)
    assert unbiased([Counts(1, 1), Counts(1, 0)], rule) == Counts(2, 1, 0, 0.5)


def test_unknown_verdicts_are_left_out() -> None:
    """A first batch of 4 with one failure and three unknowns continues with three more, so everything is sampled
    without bias.
    """
    rule = StoppingRule(rollouts=7, batch=3, max_posterior_std=0.01)
    batches = [Counts(0, 1, 3), Counts(2, 1)]
    assert unbiased(batches, rule).value == pytest.approx(2 / 4)
    assert unbiased([Counts(0, 0, 4), Counts(0, 0, 3)], rule).value is None
