"""Test targets and weights of labeled paths on worked numbers, including known errors of public trainers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.labels.soft_labels import CORRECT, INCORRECT
from mmprm.prm.losses import soft_cross_entropy_sum
from mmprm.prm.targets import NO_TARGET, TargetConfig, Targets, make_targets, precision
from mmprm.types import Counts, LabeledPath, Problem

PROBLEM = Problem("p", "1 + 1 = ?", "2")


def example(*counts: Counts | None, complete: bool = False, name: str = "") -> LabeledExample:
    """Return a path whose steps start with `name`, so that paths can share or not share steps."""
    steps = tuple(f"{name}{depth}" for depth in range(len(counts)))
    return LabeledExample(PROBLEM, LabeledPath("p", steps, counts, complete), "train")


def values(examples: list[LabeledExample], **config: str | float) -> list[list[float | None]]:
    """Return the targets, with None for NaN because NaN equals nothing."""
    targets = make_targets(examples, TargetConfig(**config))
    return [[None if math.isnan(value) else value for value in target.values] for target in targets]


def weights(examples: list[LabeledExample], weight: str, **config: str) -> list[Targets]:
    return [list(target.weights) for target in make_targets(examples, TargetConfig(weight=weight, **config))]


def test_soft_and_hard() -> None:
    """The labels are 3 of 4 correct, none known, 1 of 8, and an estimate corrected for the stopping rule's bias."""
    path = [example(Counts(3, 1), None, Counts(0, 0, 4), Counts(1, 7), Counts(3, 1, estimate=0.6))]
    assert values(path) == [[0.75, None, None, 0.125, 0.6]]
    assert values(path, kind="hard") == [[1.0, None, None, 1.0, 1.0]]
    assert values(path, kind="hard", error_value=0.125) == [[1.0, None, None, 0.0, 1.0]]
    assert values(path, kind="hard", error_value=0.6) == [[1.0, None, None, 0.0, 0.0]]


def test_after_the_first_error() -> None:
    path = [example(Counts(3, 1), Counts(0, 4), Counts(1, 3), CORRECT, complete=True)]
    assert values(path) == [[0.75, 0.0, 0.25, 1.0]]
    assert values(path, after_error="mask") == [[0.75, 0.0, None, None]]


def test_outcome_reward() -> None:
    """Only complete solutions have a target: their verdict, at the last step."""
    correct = example(Counts(3, 1), None, CORRECT, complete=True, name="r")
    incorrect = example(Counts(3, 1), INCORRECT, complete=True, name="w")
    cut = example(Counts(3, 1), Counts(2, 2), name="c")
    expected = [[None, None, 1.0], [None, 0.0], [None, None]]
    for kind in ("soft", "hard"):
        assert values([correct, incorrect, cut], kind=kind, steps="last") == expected
    assert values([correct], steps="last", after_error="mask", correct_solutions="all_steps") == expected[:1]


def test_a_verdict_of_several_rollouts_fills_a_correct_solution() -> None:
    for verdict in (CORRECT, Counts(16, 0)):
        path = [example(Counts(3, 1), None, verdict, complete=True)]
        assert values(path, correct_solutions="all_steps") == [[0.75, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "progress", "steps": "last"}, "steps=last.*instead of progress"),
        ({"kind": "first_error", "steps": "last"}, "steps=last.*instead of first_error"),
        ({"kind": "progress", "correct_solutions": "all_steps"}, "correct_solutions=all_steps"),
    ],
)
def test_settings_that_a_kind_ignores_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetConfig(**settings)


def test_precision_is_that_of_the_beta_posterior() -> None:
    """The variance is 81 / (324 · 19) = 1/76 for 8 of 16, 17 / (324 · 19) for 16 of 16, 1/28 for 2 of 4, and 1/12 for
    none.
    """
    assert precision(8, 8) == pytest.approx(76)
    assert precision(16, 0) == pytest.approx(324 * 19 / 17)
    assert precision(2, 2) == pytest.approx(28)
    assert precision(0, 0) == pytest.approx(12)
    assert precision(0, 16) == precision(16, 0)


def test_weights() -> None:
    """16 and 4 rollouts weigh 1.6 and 0.4 by count; at even odds, precisions 76 and 28 weigh 1.4615 and 0.5385."""
    paths = [example(Counts(8, 8, 5), None, name="a"), example(Counts(2, 2), name="b")]
    assert weights(paths, "none") == [[1.0, 1.0], [1.0]]
    assert weights(paths, "count") == [[1.6, 1.0], [0.4]]
    assert weights(paths, "precision") == [[pytest.approx(76 / 52), 1.0], [pytest.approx(28 / 52)]]


def test_a_verdict_weighs_as_much_as_the_most_certain_label() -> None:
    """16, 4 and a verdict counted as 16 have mean 12. A target without counts weighs 1; masked ones are excluded."""
    sure = example(Counts(8, 8), name="a")
    correct = example(Counts(2, 2), None, CORRECT, complete=True, name="b")
    by_count = [[4 / 3], [1 / 3, 1.0, 4 / 3]]
    assert weights([sure, correct], "count") == [pytest.approx(row) for row in by_count]
    assert weights([sure, correct], "count", correct_solutions="all_steps") == [pytest.approx(row) for row in by_count]
    mean = (76 + 28 + precision(16, 0)) / 3
    by_precision = [[76 / mean], [28 / mean, 1.0, precision(16, 0) / mean]]
    assert weights([sure, correct], "precision") == [pytest.approx(row) for row in by_precision]
    assert weights([sure, correct], "count", steps="last") == [[1.0], [1.0, 1.0, 1.0]]


def test_weighted_loss() -> None:
    """For p = 3/4, targets 1 and 0, and weights 2 and 1/2: 2 · 0.287682 + 1.386294 / 2 = 1.268511. NaN is excluded."""
    logits_M2 = torch.tensor([[math.log(3), 0.0]]).expand(3, 2)
    target_M, weight_M = torch.tensor([1.0, 0.0, NO_TARGET]), torch.tensor([2.0, 0.5, 100.0])
    assert soft_cross_entropy_sum(logits_M2, target_M, weight_M).item() == pytest.approx(1.268511, abs=1e-6)
    assert soft_cross_entropy_sum(logits_M2, target_M, torch.ones(3)) == soft_cross_entropy_sum(logits_M2, target_M)


def test_an_ignore_index_is_rejected_as_a_target() -> None:
    """Cast to a boolean, −100 would count as a correct step."""
    for value in (-100.0, 1.01, -0.01):
        with pytest.raises(AssertionError, match=r"lie in \[0, 1\]"):
            soft_cross_entropy_sum(torch.zeros(1, 2), torch.tensor([value]))


def test_soft_labels_survive_the_file(tmp_path: Path) -> None:
    """A label of 47 of 50 remains 0.94 from counts to target and is never rounded to 0 or 1."""
    write_parquet(tmp_path / "labels.parquet", [example(Counts(47, 3), None)])
    (target,) = make_targets(read_parquet(tmp_path / "labels.parquet"), TargetConfig())
    assert target.values[0] == pytest.approx(0.94)
    assert math.isnan(target.values[1])


def test_progress_is_the_change_of_value() -> None:
    """With 0.5 at the root, progress is +0.25, unknown after an unlabeled step, and -0.5."""
    steps = ("a", "b", "c", "d")
    path = LabeledPath("p", steps, (Counts(3, 1), None, Counts(2, 2), Counts(0, 4)), False, 0.5)
    assert values([LabeledExample(PROBLEM, path, "train")], kind="progress") == [[0.625, None, None, 0.25]]


def test_progress_of_a_first_step_needs_the_root() -> None:
    assert values([example(Counts(3, 1), Counts(4, 0))], kind="progress") == [[None, 0.625]]


def test_progress_uses_values_stored_on_other_paths() -> None:
    stored = LabeledPath("p", ("a", "b"), (Counts(2, 2), None), False, 0.25)
    other = LabeledPath("p", ("a", "c"), (None, Counts(4, 0)), False, 0.25)
    both = [LabeledExample(PROBLEM, path, "train") for path in (stored, other)]
    assert values(both, kind="progress") == [[0.625, None], [None, 0.75]]


def test_progress_sums_to_the_value_gained() -> None:
    path = LabeledPath("p", ("a", "b", "c"), (Counts(1, 3), Counts(3, 1), Counts(4, 0)), False, 0.5)
    (row,) = values([LabeledExample(PROBLEM, path, "train")], kind="progress")
    assert sum(2 * value - 1 for value in row) == pytest.approx(1.0 - 0.5)


def test_the_first_error_labels_every_step_before_it() -> None:
    """Step 2 has rollouts that succeed, so step 1 is correct as well. The error may be step 3 or 4."""
    path = [example(None, Counts(1, 15), None, Counts(0, 16), Counts(2, 14))]
    assert values(path, kind="first_error") == [[1.0, 1.0, None, 0.0, None]]
    assert values(path, kind="first_error", error_value=0.1) == [[None, 0.0, None, None, None]]


def test_without_an_error_the_steps_up_to_the_last_label_are_correct() -> None:
    assert values([example(None, Counts(3, 1), None)], kind="first_error") == [[1.0, 1.0, None]]
    assert values([example(None, CORRECT, complete=True)], kind="first_error") == [[1.0, 1.0]]


def test_a_shared_step_before_the_error_is_trained_once() -> None:
    first = LabeledPath("p", ("a", "b"), (None, Counts(3, 1)), False)
    second = LabeledPath("p", ("a", "c"), (None, Counts(0, 4)), False)
    both = [LabeledExample(PROBLEM, path, "train") for path in (first, second)]
    assert values(both, kind="first_error") == [[1.0, 1.0], [None, 0.0]]
