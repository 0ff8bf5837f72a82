"""Compute metrics of scores: AUC, ProcessBench F1 and its threshold, calibration, and bootstrap intervals. NumPy only.

Shapes: K item (step or solution), P problem, S step, B bootstrap resample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmprm.errors import DataError

NO_ERROR = -1
"""First-error index of a solution with no incorrect step, as in ProcessBench's `label`."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """Holds an estimate and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def roc_auc(scores_K: ArrayLike, positive_K: ArrayLike) -> float:
    """Return the area under the ROC curve: P(positive > negative) + ½ P(equal) over all pairs of scores.

    Computed as Mann-Whitney U divided by the number of pairs. Raises DataError if one of the two classes is missing.
    """
    scores_K, positive_K = np.asarray(scores_K, dtype=float), np.asarray(positive_K, dtype=bool)
    positives, negatives = int(positive_K.sum()), int((~positive_K).sum())
    if not positives or not negatives:
        raise DataError(
            f"AUC needs positive and negative items, got {positives} positive and {negatives} negative; add items of "
            "the missing class"
        )
    # Tied scores get the mean of their ranks, so each tied pair counts ½.
    _, inverse_K, counts = np.unique(scores_K, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = midranks[inverse_K][positive_K].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True, slots=True)
class FirstErrorF1:
    """Holds ProcessBench's F1 and the two accuracies of which it is the harmonic mean.

    `on_bad` is the share of solutions with an incorrect step whose first error is found exactly. `on_good` is the share
    of fully correct solutions in which no error is claimed. `f1` is the harmonic mean of the two.
    """

    f1: float
    on_bad: float
    on_good: float
    bad: int
    good: int


def first_below(scores_S: Sequence[float], threshold: float) -> int:
    """Return the index of the first step with a score below the threshold, or NO_ERROR."""
    return next((index for index, score in enumerate(scores_S) if score < threshold), NO_ERROR)


def processbench_f1(predicted_K: ArrayLike, truth_K: ArrayLike) -> FirstErrorF1:
    """Return ProcessBench's F1 = 2ab / (a + b), where a and b are the accuracies on incorrect and correct solutions.

    Both arguments hold first-error indices or NO_ERROR. A solution is incorrect if it has an incorrect step. The result
    is NaN if there are no correct or no incorrect solutions. Source: Zheng et al., ProcessBench.
    """
    predicted_K, truth_K = np.asarray(predicted_K), np.asarray(truth_K)
    assert predicted_K.shape == truth_K.shape, "one prediction per solution"
    hit_K, bad_K = predicted_K == truth_K, truth_K != NO_ERROR
    on_bad, on_good = _mean(hit_K[bad_K]), _mean(hit_K[~bad_K])
    return FirstErrorF1(_harmonic(on_bad, on_good), on_bad, on_good, int(bad_K.sum()), int((~bad_K).sum()))


def choose_threshold(scores_KS: Sequence[Sequence[float]], truth_K: Sequence[int]) -> tuple[float, FirstErrorF1]:
    """Return the threshold in [0, 1] with the highest ProcessBench F1 on a development split, and that F1.

    A solution with first error e is judged correctly exactly if the threshold t satisfies min(s_0…s_e) < t ≤
    min(s_0…s_{e-1}). A solution with no error is judged correctly exactly if t ≤ min(s_0…s_last). F1 is therefore
    constant between neighboring ends of these intervals. The result is the midpoint of the gap with the best F1, or of
    the widest such gap on ties. Raises DataError if all solutions have an incorrect step, or none has.
    """
    bad_K = np.asarray(truth_K) != NO_ERROR
    if bad_K.all() or not bad_K.any():
        raise DataError(
            f"choosing a threshold needs solutions with and without an incorrect step: the development split has "
            f"{bad_K.sum()} with and {(~bad_K).sum()} without; give it more solutions"
        )
    low_K, high_K = np.array(
        [_judged_correctly(scores_S, error) for scores_S, error in zip(scores_KS, truth_K, strict=True)]
    ).T
    edges = np.unique(np.clip(np.concatenate([low_K, high_K, [0.0, 1.0]]), 0.0, 1.0))
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)

    def share_correct(of_K: NDArray[np.bool_]) -> Floats:
        # The intervals that contain a midpoint are those that began before it and have not ended.
        started = np.searchsorted(np.sort(low_K[of_K]), middles, side="left")
        ended = np.searchsorted(np.sort(high_K[of_K]), middles, side="left")
        return (started - ended) / of_K.sum()

    on_bad, on_good = share_correct(bad_K), share_correct(~bad_K)
    f1 = np.divide(2 * on_bad * on_good, on_bad + on_good, out=np.zeros_like(on_bad), where=on_bad + on_good > 0)
    # Among equally good gaps, the widest generalizes best; 1e-12 allows for rounding.
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    threshold = float(middles[best[np.argmax(widths[best])]])
    return threshold, processbench_f1([first_below(scores_S, threshold) for scores_S in scores_KS], truth_K)


@dataclass(frozen=True, slots=True)
class MacroF1:
    """Holds the F1 on correct steps (`on_correct`), the F1 on incorrect steps (`on_incorrect`), and their mean `f1`."""

    f1: float
    on_correct: float
    on_incorrect: float
    correct: int
    incorrect: int


def macro_f1(claimed_K: ArrayLike, correct_K: ArrayLike) -> MacroF1:
    """Return the macro F1: the mean of the F1 on correct steps and the F1 on incorrect steps.

    Per class, F1 = 2 TP / (predicted + actual), where TP is the number of steps of the class predicted as such. The
    result is NaN if one of the two classes does not occur in the truth. Source: Wang et al., VisualPRM
    (VisualProcessBench).
    """
    claimed_K, correct_K = np.asarray(claimed_K, dtype=bool), np.asarray(correct_K, dtype=bool)
    assert claimed_K.shape == correct_K.shape, "one claim per step"
    correct, incorrect = int(correct_K.sum()), int((~correct_K).sum())
    if not correct or not incorrect:
        return MacroF1(math.nan, math.nan, math.nan, correct, incorrect)
    on_correct = 2 * int((claimed_K & correct_K).sum()) / (int(claimed_K.sum()) + correct)
    on_incorrect = 2 * int((~claimed_K & ~correct_K).sum()) / (int((~claimed_K).sum()) + incorrect)
    return MacroF1((on_correct + on_incorrect) / 2, on_correct, on_incorrect, correct, incorrect)


def choose_step_threshold(scores_K: ArrayLike, correct_K: ArrayLike) -> tuple[float, MacroF1]:
    """Return the threshold in [0, 1] with the highest macro F1 on a development split, and that F1.

    A step is claimed correct if its score is at least the threshold. As in choose_threshold, the result is the midpoint
    of the best gap between scores, or of the widest such gap on ties. Raises DataError if one class is missing.
    """
    scores_K, correct_K = np.asarray(scores_K, dtype=float), np.asarray(correct_K, dtype=bool)
    correct, incorrect = int(correct_K.sum()), int((~correct_K).sum())
    if not correct or not incorrect:
        raise DataError(
            f"choosing a threshold needs correct and incorrect steps: the development split has {correct} correct and "
            f"{incorrect} incorrect; give it more solutions"
        )
    edges = np.unique(np.concatenate([scores_K, [0.0, 1.0]]))
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    # Steps below the threshold are claimed incorrect: `missed` correct ones and `found` incorrect ones.
    missed = np.searchsorted(np.sort(scores_K[correct_K]), middles)
    found = np.searchsorted(np.sort(scores_K[~correct_K]), middles)
    on_correct = 2 * (correct - missed) / (2 * correct - missed + incorrect - found)
    on_incorrect = 2 * found / (found + missed + incorrect)
    f1 = (on_correct + on_incorrect) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    threshold = float(middles[best[np.argmax(widths[best])]])
    return threshold, macro_f1(scores_K >= threshold, correct_K)


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval | None:
    """Return the Wilson score interval (1927) of a proportion p = k / n. Here z is the normal quantile of the level.

    The bounds are (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Returns None for n = 0.
    """
    assert 0 <= successes <= trials, "successes cannot exceed trials"
    if not trials:
        return None
    share, z = successes / trials, NormalDist().inv_cdf(0.5 + level / 2)
    center = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    return Interval(share, max(0.0, (center - half) / scale), min(1.0, (center + half) / scale))


def bootstrap_mean(values_P: ArrayLike, seed: int, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Return the percentile bootstrap interval of the mean over problems, given one value per problem."""
    return bootstrap_means([values_P], seed, resamples, level)[0]


def bootstrap_means(
    values_RP: Sequence[ArrayLike], seed: int, resamples: int = 2000, level: float = 0.95
) -> list[Interval]:
    """Return the bootstrap interval of each row's mean over problems, using the same resamples for all rows."""
    values_PR = np.asarray(values_RP, dtype=float).T
    problems = len(values_PR)
    if not problems:
        raise DataError("a bootstrap interval needs at least one problem, got 0; add problems with a measured value")
    rng = np.random.default_rng(seed)
    resampled = (rng.integers(problems, size=problems) for _ in range(resamples))
    counts_BP = np.array([np.bincount(indices_P, minlength=problems) for indices_P in resampled], dtype=float)
    # With the counts of how often each problem is drawn, one matrix product gives the means of all resamples.
    means_BR = counts_BP @ values_PR / problems
    return [
        _percentiles(float(value), means_B, level)
        for value, means_B in zip(values_PR.mean(axis=0), means_BR.T, strict=True)
    ]


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    problem_K: Sequence[Hashable],
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the percentile bootstrap interval of a statistic over items, resampling whole problems.

    `problem_K` holds the problem of each item; a problem is resampled with all its items. `statistic` receives the
    indices of the resampled items. Resamples for which it is NaN are excluded from the percentiles.
    """
    items: dict[Hashable, list[int]] = {}
    for index, problem in enumerate(problem_K):
        items.setdefault(problem, []).append(index)
    if not items:
        raise DataError("a bootstrap interval needs at least one problem, got 0; add problems with a measured value")
    # Items are sorted by problem, so each problem is a contiguous range, and resampling needs no Python loop.
    ordered_K = np.concatenate(list(map(np.array, items.values())))
    sizes_P = np.array(list(map(len, items.values())))
    starts_P = np.cumsum(sizes_P) - sizes_P
    rng = np.random.default_rng(seed)

    def resample() -> NDArray[np.intp]:
        indices_P = rng.integers(len(items), size=len(items))
        sizes = sizes_P[indices_P]
        shifts = starts_P[indices_P] - (np.cumsum(sizes) - sizes)
        return ordered_K[np.repeat(shifts, sizes) + np.arange(sizes.sum())]

    values_B = [statistic(resample()) for _ in range(resamples)]
    return _percentiles(statistic(np.arange(len(problem_K))), np.array(values_B), level)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Holds the number of items with a predicted probability in [low, high), and their mean prediction and outcome."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


def reliability(probability_K: ArrayLike, outcome_K: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Compute a reliability curve with bins of equal width; 1.0 falls into the last bin, and empty bins are omitted."""
    probability_K, outcome_K = np.asarray(probability_K, dtype=float), np.asarray(outcome_K, dtype=float)
    bin_K = np.minimum((probability_K * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int((bin_K == index).sum()),
            predicted=float(probability_K[bin_K == index].mean()),
            observed=float(outcome_K[bin_K == index].mean()),
        )
        for index in np.unique(bin_K).tolist()
    ]


def expected_calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error: the mean of |observed - predicted| over the bins, weighted by count.

    ECE = Σ_b n_b / n · |observed_b - predicted_b|, where bin b holds n_b of the n items.
    """
    total = sum(entry.count for entry in curve)
    return sum(entry.count * abs(entry.observed - entry.predicted) for entry in curve) / total


def _judged_correctly(scores_S: Sequence[float], first_error: int) -> tuple[float, float]:
    """Return bounds (low, high) such that `first_error` is predicted at the thresholds t with low < t ≤ high.

    If there is no such t, low == high.
    """
    if first_error == NO_ERROR:
        return -1.0, min(scores_S, default=2.0)
    assert 0 <= first_error < len(scores_S), "the first error is one of the solution's steps"
    # 2.0 means no upper bound, because it exceeds every threshold.
    high = min(scores_S[:first_error], default=2.0)
    return min(high, scores_S[first_error]), high


def _harmonic(left: float, right: float) -> float:
    return 2 * left * right / (left + right) if left + right else 0.0


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _percentiles(value: float, values_B: Floats, level: float) -> Interval:
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values_B, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
