from __future__ import annotations

import pytest

from mmprm.evaluation.aggregators import (
    RAISED_LATE,
    AggregatorChoice,
    choose_aggregator,
    described,
    misgiving,
    with_choice,
)
from mmprm.evaluation.label_quality import judged_labels, known_from, no_error_so_far
from mmprm.evaluation.labeled import LabeledSolution
from mmprm.evaluation.prm_evaluation import METRICS, ScoredSolution, judge
from mmprm.labels.parquet import LabeledExample
from mmprm.metrics import NO_ERROR, Interval
from mmprm.prm.info import PrmInfo
from mmprm.scoring.aggregate import AGGREGATORS
from mmprm.selection.groups import Candidate, CandidateGroup
from mmprm.types import Counts, LabeledPath, Problem, Solution, StepScores, Verdict


def judged(problem: str, scores: tuple[float, ...], error: int) -> ScoredSolution:
    correct = tuple(index != error for index in range(len(scores)))
    solution = Solution(Problem(problem, "?", ""), ("s",) * len(scores))
    return LabeledSolution(solution, correct, problem, "tiny"), StepScores(scores)


DEVELOPMENT = [judged("a", (0.9, 0.3), 1), judged("a", (0.9, 0.8), NO_ERROR), judged("b", (0.1, 0.9), 0)]


def test_threshold_and_f1_by_hand() -> None:
    threshold = METRICS["first_error_f1"].choose(DEVELOPMENT)
    assert threshold == pytest.approx(0.55)
    unseen = [
        judged("c", (0.9, 0.5), 1),
        judged("c", (0.9, 0.7), NO_ERROR),
        judged("d", (0.5, 0.2), 1),  # predicted too early
        judged("d", (0.6, 0.6), NO_ERROR),
    ]
    result = judge("tiny", "first_error_f1", unseen, threshold=threshold)
    f1, parts = result.pooled.f1, result.pooled.parts
    assert (parts["on_bad"].value, parts["on_good"].value) == (0.5, 1.0)
    assert f1.value == pytest.approx(2 / 3)
    assert (f1.low, f1.high) == (0.0, 1.0)  # resamples of d alone, and of c alone
    assert (result.pooled.solutions, result.threshold) == (4, threshold)


def test_the_aggregator_that_picks_correct_solutions_is_chosen() -> None:
    def candidate(correct: bool, *scores: float) -> Candidate:
        return Candidate("", ("s",), "7", Verdict(correct), 1, scores=StepScores(scores))

    # Only the last score prefers the correct one: min, mean, products and sums prefer the incorrect one, max ties.
    groups = [
        CandidateGroup(Problem(str(i), "q", "7"), (candidate(False, 0.9, 0.6), candidate(True, 0.1, 0.9)))
        for i in range(4)
    ]
    choice = choose_aggregator(groups)
    assert choice.name == "last"
    assert (choice.n, choice.problems, choice.accuracy.value, choice.accuracy.low) == (2, 4, 1.0, 1.0)
    assert set(choice.candidates) == set(AGGREGATORS)
    assert choice.candidates["min"].value == 0.0
    assert choice.candidates["max"].value == 0.5


def test_an_aggregator_is_described_by_its_evidence() -> None:
    choice = AggregatorChoice("min", 8, 120, Interval(0.7875, 0.71, 0.858), {})
    info = with_choice(PrmInfo(base="b"), choice)
    assert info.base == "b"
    assert described("min", info) == "min, chosen on 120 problems: best-of-8 0.787 [0.710, 0.858]"
    assert described("max", info) == "max, as configured; prm.json has min"
    assert described("max", PrmInfo()) == "max, as configured; prm.json has none"
    assert "records no evidence" in described("min", PrmInfo(aggregator="min"))


def test_scores_after_an_error_raise_only_flagged_aggregators() -> None:
    """Only the aggregators with a warning can increase when one more score follows an error."""
    scores, noise = (0.9, 0.2), [step / 20 for step in range(21)]
    raised = {name for name, of in AGGREGATORS.items() if any(of((*scores, late)) > of(scores) for late in noise)}
    assert raised == RAISED_LATE
    masked = PrmInfo(labels={"after_error": "mask"}, aggregator="min")
    assert {name for name in AGGREGATORS if misgiving(name, masked)} == RAISED_LATE
    assert "trained without" in misgiving("last", masked)
    assert misgiving("last", PrmInfo(labels={"after_error": "keep"})) is None
    proven = with_choice(masked, AggregatorChoice("last", 8, 120, Interval(0.5, 0.4, 0.6), {}))
    assert misgiving("last", proven) is None
    assert misgiving("max", proven)


def test_no_error_so_far() -> None:
    assert no_error_so_far([True, None, True, False, None, True]) == [True, None, None, False, False, False]


def example(steps: str, *labels: tuple[int, int] | None, complete: bool = False) -> LabeledExample:
    counts = tuple(None if label is None else Counts(*label) for label in labels)
    return LabeledExample(Problem("p", "q ", "1"), LabeledPath("p", tuple(steps), counts, complete), "train")


def test_labels_meet_human_judgments_of_equal_prefixes() -> None:
    question = Problem("f:1", "q", "")
    people = [
        LabeledSolution(Solution(question, ("a", "b ", "c")), (True, False, None), "x", "f"),
        LabeledSolution(Solution(question, ("a", "d", "e")), (True, None, True), "x", "f"),
    ]
    known = known_from(people)
    assert known(Problem("p", "q", "1"), ("a", "b", "z", "c")) == [True, False, None, None]
    examples = [
        example("abc", (3, 1), (1, 3), (0, 4)),
        example("ade", (2, 2), (4, 0), (4, 0)),
        example("ab", None, (0, 4), complete=True),  # the label of a whole solution is its verdict
        example("z", (4, 0)),
    ]
    judged = judged_labels(examples, known, "labels")
    assert [(item.correct, scores.scores) for item, scores in judged] == [
        ((True, False, False), (0.75, 0.25, 0.0)),
        ((True,), (0.5,)),
    ]
    assert known(Problem("p", "another", "1"), ("a",)) == [None]
