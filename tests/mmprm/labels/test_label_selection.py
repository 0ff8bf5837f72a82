"""Test the rules that select labels and solutions, on worked numbers."""

from __future__ import annotations

import pytest

from mmprm.errors import ConfigError
from mmprm.labels.parquet import LabeledExample
from mmprm.labels.selection import (
    SelectionConfig,
    SelectionCounts,
    balanced_information,
    keep_informative,
    select_labels,
)
from mmprm.types import Counts, LabeledPath, Problem

YES, NO = Counts(1, 0), Counts(0, 1)


def example(steps: str, *counts: Counts | None, complete: bool = False, judged=None) -> LabeledExample:
    """Return a solution whose steps are the letters of `steps`."""
    path = LabeledPath("p", tuple(steps), counts, complete)
    return LabeledExample(Problem("p", "q", "a"), path, "train", judged, judged and "judge")


def left(examples: list[LabeledExample], **keys: object) -> list[tuple[str, list[float | None]]]:
    kept, _ = select_labels(examples, SelectionConfig(**keys))
    return [("".join(each.path.steps), [label and label.value for label in each.path.counts]) for each in kept]


@pytest.mark.parametrize(
    ("values", "alpha", "score"),
    [
        ([1.0, 0.0], 0.05, (0.25 + 0.05) * 1.0),
        ([0.5, 0.25, 0.0, 0.0], 0.05, (0.25 + 0.05) * 0.375),
        ([1.0, 1.0], 0.05, 0.05),
        ([0.0, 0.0], 0.2, 0.2),  # without a positive step, the reliability is 1
        ([0.5, 0.5, 0.5, 0.0], 0.0, 0.1875 * 0.5),
    ],
)
def test_balanced_information(values: list[float], alpha: float, score: float) -> None:
    assert balanced_information(values, alpha) == pytest.approx(score)


def test_labels_with_few_rollouts_are_dropped_but_verdicts_stay() -> None:
    examples = [example("ab", Counts(3, 2), Counts(8, 8)), example("ac", Counts(2, 2), YES, complete=True)]
    assert left(examples, min_rollouts=5) == [("ab", [0.6, 0.5]), ("ac", [None, 1.0])]
    assert left(examples, min_rollouts=6) == [("ab", [None, 0.5]), ("ac", [None, 1.0])]


def test_wide_posteriors_are_dropped() -> None:
    """Beta(9, 9) has a standard deviation of 0.1147, and Beta(3, 3) one of 0.1890."""
    examples = [example("ab", Counts(2, 2), Counts(8, 8))]
    assert left(examples, max_posterior_std=0.12) == [("ab", [None, 0.5])]
    assert left(examples, max_posterior_std=0.11) == []


def test_the_most_informative_solutions_are_kept() -> None:
    """The scores are 0.3 for ab, 0.05 for c and 0.15 for d."""
    examples = [example("ab", YES, NO), example("c", YES), example("de", Counts(8, 8), NO)]
    assert [name for name, _ in left(examples, informative=0.67)] == ["ab", "de"]
    assert [name for name, _ in left(examples, informative=0.1)] == ["ab"]


def test_a_kept_solution_keeps_the_labels_that_it_shares() -> None:
    """The label of `a` is stored with a solution that is dropped."""
    examples = [example("ax", YES, YES), example("ay", None, NO)]
    assert left(examples, informative=0.5) == [("ay", [1.0, 0.0])]


def test_the_choice_does_not_depend_on_the_order() -> None:
    examples = [example(letter, YES) for letter in "abcdefgh"]
    chosen = {each.path.steps for each in keep_informative(examples, 0.5, 0.05)}
    assert {each.path.steps for each in keep_informative(examples[::-1], 0.5, 0.05)} == chosen
    assert len(chosen) == 4


def test_agreement_needs_a_judge() -> None:
    with pytest.raises(ConfigError, match="run mmprm consensus"):
        left([example("a", YES)], agree="steps")


def test_each_rule_is_counted() -> None:
    examples = [
        example("ab", Counts(8, 8), Counts(0, 16), judged=(0.9, 0.9)),
        example("c", Counts(2, 2), judged=(0.9,)),
        example("d", Counts(16, 0), judged=(0.9,)),
    ]
    kept, counts = select_labels(examples, SelectionConfig(agree="steps", min_rollouts=5, max_posterior_std=0.1))
    assert counts == SelectionCounts(agree=1, min_rollouts=1, max_posterior_std=1, informative=0, solutions=1)
    assert [each.path.steps for each in kept] == [("d",)]
