"""Compare the verdicts of a critique with the labels of a solution, up to the first incorrect step.

A label states whether the solution is correct up to and including a step: True, False, or None if unknown. Labels after
the first incorrect step are None, because nothing there can confirm a verdict. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmprm.labels.formats import repeat_shared
from mmprm.labels.parquet import LabeledExample
from mmprm.types import Counts

LabelsUntilError = tuple[bool | None, ...]

FALSE_ALARM = "calls a correct step incorrect"
MISS = "calls an incorrect step correct"


def step_labels(examples: Sequence[LabeledExample], value_above: float) -> list[LabelsUntilError]:
    """Return the labels of each example's steps, including those that another path of its problem stores.

    A step is labeled correct if its value exceeds `value_above`.
    """
    return [
        _until_error([_is_correct(counts, value_above) for counts in path.counts])
        for path in repeat_shared([example.path for example in examples])
    ]


def contradiction(verdicts: Sequence[bool], labels: Sequence[bool | None]) -> str | None:
    """Return how the verdicts contradict the labels at the first step where they do, or None if they agree.

    If the steps just before the first incorrect label are unlabeled, the verdicts may locate the error at any of them.
    """
    for verdict, label in zip(verdicts, labels, strict=True):
        if label is not None and verdict is not label:
            return FALSE_ALARM if label else MISS
    return None


def agreeing_share(verdicts: Sequence[bool], labels: Sequence[bool | None]) -> float:
    """Return the share of the labeled steps on which the verdicts agree with the labels; at least one must be
    labeled."""
    agree = [verdict is label for verdict, label in zip(verdicts, labels, strict=True) if label is not None]
    return sum(agree) / len(agree)


def _is_correct(counts: Counts | None, value_above: float) -> bool | None:
    return None if counts is None or counts.value is None else counts.value > value_above


def _until_error(labels: list[bool | None]) -> LabelsUntilError:
    end = labels.index(False) + 1 if False in labels else len(labels)
    return (*labels[:end], *[None] * (len(labels) - end))
