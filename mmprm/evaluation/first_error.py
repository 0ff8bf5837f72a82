"""Finding the first bad step: ProcessBench F1 of step scores, with the threshold from a development split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmprm.metrics import NO_ERROR, Interval, bootstrap, choose_threshold, first_below, processbench_f1
from mmprm.types import StepScores


@dataclass(frozen=True, slots=True)
class Judged:
    """A scored solution whose first bad step is known (NO_ERROR: it has none)."""

    problem_id: str
    scores: StepScores
    first_error: int


@dataclass(frozen=True, slots=True)
class FirstErrorResult:
    """ProcessBench F1 and its two accuracies (see metrics.processbench_f1), intervals over problems."""

    threshold: float
    f1: Interval
    on_bad: Interval
    on_good: Interval
    bad: int
    good: int


def threshold_from(development: Sequence[Judged]) -> float:
    """The threshold of highest F1 on solutions that are not evaluated on; raises DataError without both kinds."""
    threshold, _ = choose_threshold([j.scores.scores for j in development], [j.first_error for j in development])
    return threshold


def evaluate_first_error(judged: Sequence[Judged], threshold: float, seed: int = 0) -> FirstErrorResult:
    """The predicted first error is the first step with a score below `threshold`."""
    predicted_K = np.array([first_below(item.scores.scores, threshold) for item in judged])
    truth_K = np.array([item.first_error for item in judged])
    problem_K = [item.problem_id for item in judged]
    result = processbench_f1(predicted_K, truth_K)

    def interval(figure: str) -> Interval:
        return bootstrap(
            lambda drawn: getattr(processbench_f1(predicted_K[drawn], truth_K[drawn]), figure), problem_K, seed
        )

    return FirstErrorResult(
        threshold=threshold,
        f1=interval("f1"),
        on_bad=interval("on_bad"),
        on_good=interval("on_good"),
        bad=result.bad,
        good=result.good,
    )


def first_error(right_S: Sequence[bool]) -> int:
    """Index of the first step that is not right; NO_ERROR where all are."""
    return next((index for index, right in enumerate(right_S) if not right), NO_ERROR)
