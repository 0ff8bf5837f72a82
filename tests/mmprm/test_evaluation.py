from __future__ import annotations

import pytest

from mmprm.evaluation.aggregators import choose_aggregator
from mmprm.evaluation.first_error import Judged, evaluate_first_error, first_error, threshold_from
from mmprm.metrics import NO_ERROR
from mmprm.scoring.aggregate import AGGREGATORS
from mmprm.selection.groups import Candidate, Group
from mmprm.types import Problem, StepScores, Verdict


def judged(problem: str, scores: tuple[float, ...], error: int) -> Judged:
    return Judged(problem, StepScores(scores), error)


DEVELOPMENT = [judged("a", (0.9, 0.3), 1), judged("a", (0.9, 0.8), NO_ERROR), judged("b", (0.1, 0.9), 0)]


def test_threshold_and_f1_by_hand() -> None:
    threshold = threshold_from(DEVELOPMENT)
    assert threshold == pytest.approx(0.55)
    unseen = [
        judged("c", (0.9, 0.5), 1),
        judged("c", (0.9, 0.7), NO_ERROR),
        judged("d", (0.5, 0.2), 1),  # claimed too early
        judged("d", (0.6, 0.6), NO_ERROR),
    ]
    result = evaluate_first_error(unseen, threshold)
    assert (result.on_bad.value, result.on_good.value) == (0.5, 1.0)
    assert result.f1.value == pytest.approx(2 / 3)
    assert (result.f1.low, result.f1.high) == (0.0, 1.0)  # resamples of d alone, and of c alone
    assert (result.bad, result.good, result.threshold) == (2, 2, threshold)


def test_first_error() -> None:
    assert first_error([True, False, False]) == 1
    assert first_error([True, True]) == NO_ERROR


def test_the_aggregator_that_picks_right_solutions_is_chosen() -> None:
    def candidate(right: bool, *scores: float) -> Candidate:
        return Candidate("", ("s",), "7", Verdict(right), 1, scores=StepScores(scores))

    # Only the last score tells right from wrong: min, mean, products and sums prefer the wrong one, max ties.
    groups = [
        Group(Problem(str(i), "q", "7"), (candidate(False, 0.9, 0.6), candidate(True, 0.1, 0.9))) for i in range(4)
    ]
    choice = choose_aggregator(groups)
    assert choice.name == "last"
    assert (choice.n, choice.problems, choice.accuracy.value, choice.accuracy.low) == (2, 4, 1.0, 1.0)
    assert set(choice.candidates) == set(AGGREGATORS)
    assert choice.candidates["min"].value == 0.0
    assert choice.candidates["max"].value == 0.5
