from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm.errors import DataError
from mmprm.metrics import (
    NO_ERROR,
    bootstrap,
    bootstrap_mean,
    bootstrap_means,
    choose_threshold,
    expected_calibration_error,
    first_below,
    processbench_f1,
    reliability,
    roc_auc,
)


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),  # pairs won: .35>.1, .8>.1, .8>.4; lost: .35<.4
        ([0.5, 0.5, 0.5], [1, 0, 1], 0.5),
        ([0.2, 0.5, 0.5, 0.9], [0, 0, 1, 1], 0.875),  # one tie among four pairs
        ([3, 2, 1], [0, 1, 1], 0.0),
    ],
)
def test_auc_by_hand(scores: list[float], positive: list[int], expected: float) -> None:
    assert roc_auc(scores, positive) == pytest.approx(expected)


def test_auc_needs_both_classes() -> None:
    with pytest.raises(DataError, match="2 positive and 0 negative"):
        roc_auc([0.1, 0.2], [1, 1])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_auc_is_the_share_of_pairs_won(items: list[tuple[int, bool]]) -> None:
    positives = [score for score, label in items if label]
    negatives = [score for score, label in items if not label]
    if positives and negatives:
        won = np.mean([(p > n) + 0.5 * (p == n) for p in positives for n in negatives])
        assert roc_auc([score for score, _ in items], [label for _, label in items]) == pytest.approx(won)


def test_processbench_by_hand() -> None:
    # incorrect: exact, one step late, none found; correct: none found, one found → 1/3 and 1/2, F1 = 2·(1/6)/(5/6)
    result = processbench_f1([2, 3, NO_ERROR, NO_ERROR, 0], [2, 2, 1, NO_ERROR, NO_ERROR])
    assert (result.on_bad, result.on_good) == (pytest.approx(1 / 3), 0.5)
    assert result.f1 == pytest.approx(0.4)
    assert (result.bad, result.good) == (3, 2)


def test_processbench_is_zero_without_a_hit_and_nan_without_a_class() -> None:
    assert processbench_f1([1, 0], [0, NO_ERROR]).f1 == 0.0
    assert math.isnan(processbench_f1([0], [0]).f1)


def test_first_below_is_strict() -> None:
    assert first_below([0.9, 0.5, 0.4], 0.5) == 2
    assert first_below([0.9, 0.5], 0.5) == NO_ERROR
    assert first_below([], 0.5) == NO_ERROR


def test_threshold_by_hand() -> None:
    # Correct for 0.2 < t ≤ 0.8, for 0.4 < t ≤ 0.9 and, without an error, for t ≤ 0.6: all three for 0.4 < t ≤ 0.6.
    scores = [[0.8, 0.2], [0.9, 0.95, 0.4], [0.7, 0.6]]
    threshold, result = choose_threshold(scores, [1, 2, NO_ERROR])
    assert threshold == pytest.approx(0.5)
    assert result.f1 == 1.0


def test_threshold_ignores_an_error_that_a_lower_score_hides() -> None:
    # The second step is the first error, but the first one always falls below the threshold before it.
    threshold, result = choose_threshold([[0.1, 0.5], [0.3, 0.2], [0.8]], [1, 0, NO_ERROR])
    assert result.on_bad == 0.5
    assert threshold == pytest.approx(0.55)


def test_threshold_needs_both_kinds() -> None:
    with pytest.raises(DataError, match="0 with and 1 without"):
        choose_threshold([[0.5]], [NO_ERROR])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_threshold_is_the_best_of_a_fine_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, 11, size=rng.integers(1, 5)) / 10 for _ in range(8)]
    truth = [int(rng.integers(-1, len(row))) for row in scores]
    truth[0], truth[1] = NO_ERROR, 0
    _, result = choose_threshold(scores, truth)
    grid = [processbench_f1([first_below(row, t) for row in scores], truth).f1 for t in np.linspace(0.01, 0.99, 50)]
    assert result.f1 == pytest.approx(max(grid))


def test_bootstrap_of_a_constant_has_no_width() -> None:
    interval = bootstrap_mean([0.25] * 5, seed=0)
    assert (interval.value, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_bootstrap_agrees_with_the_normal_interval_and_its_seed() -> None:
    values = np.repeat([0.0, 1.0], [160, 240])
    interval = bootstrap_mean(values, seed=1, resamples=4000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    assert interval.value == 0.6
    assert interval.low == pytest.approx(0.6 - half, abs=0.006)
    assert interval.high == pytest.approx(0.6 + half, abs=0.006)
    assert interval == bootstrap_mean(values, seed=1, resamples=4000)
    assert interval != bootstrap_mean(values, seed=2, resamples=4000)


def test_rows_share_their_resamples() -> None:
    rows = np.random.default_rng(0).random((3, 50))
    together = bootstrap_means([*rows, rows[0] + 1], seed=1)
    for row, interval in zip(rows, together[:3], strict=True):
        alone = bootstrap_mean(row, seed=1)
        assert (interval.value, interval.low, interval.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert together[3].low == pytest.approx(together[0].low + 1)


def test_pairing_removes_the_spread_between_problems() -> None:
    correct = np.random.default_rng(0).random(200)
    interval = bootstrap_mean((correct + 0.1) - correct, seed=0)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(0.1)


def test_bootstrap_resamples_whole_problems() -> None:
    # Two problems have two equal items each, so four equally likely resamples have the means 0, 1/2, 1/2 and 1.
    values = np.array([0.0, 1.0, 0.0, 1.0])
    interval = bootstrap(
        lambda resampled: values[resampled].mean(), ["a", "b", "a", "b"], seed=0, resamples=400, level=0.6
    )
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)
    narrower = bootstrap(
        lambda resampled: values[resampled].mean(), ["a", "b", "a", "b"], seed=0, resamples=400, level=0.4
    )
    assert (narrower.low, narrower.high) == (0.5, 0.5)


def test_reliability_and_ece_by_hand() -> None:
    curve = reliability([0.1, 0.15, 0.9, 1.0], [0, 1, 1, 1], bins=2)
    assert [(entry.count, entry.low, entry.high) for entry in curve] == [(2, 0.0, 0.5), (2, 0.5, 1.0)]
    assert curve[0].predicted == pytest.approx(0.125)
    assert curve[0].observed == 0.5
    assert expected_calibration_error(curve) == pytest.approx(0.5 * 0.375 + 0.5 * 0.05)
