"""Compute the target and weight of each labeled step from its rollout counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from mmprm.config import Config
from mmprm.labels.parquet import LabeledExample
from mmprm.labels.soft_labels import CORRECT
from mmprm.trees.stopping import posterior_deviation
from mmprm.types import Counts, LabeledPath, Steps

NO_TARGET = float("nan")


class TargetConfig(Config):
    kind: Literal["soft", "hard"] = "soft"
    """How to compute a step's target. soft: the Monte Carlo value; hard: 1 if the value is above error_value, else
    0."""
    error_value: float = Field(0.0, ge=0, lt=1)
    """Monte Carlo value at or below which a prefix counts as incorrect."""
    steps: Literal["all", "last"] = "all"
    """Steps to train on. all: every labeled step; last: the last step of each complete solution, with the final verdict
    as its target, which trains an outcome reward model."""
    after_error: Literal["keep", "mask"] = "keep"
    """Targets to use after the first incorrect prefix. keep: all of them; mask: none."""
    correct_solutions: Literal["last_step", "all_steps"] = "last_step"
    """How to treat unlabeled steps of a correct solution without a known incorrect prefix. last_step: no target;
    all_steps: target 1. Search labels few correct steps late in a solution, but a correct answer can follow from
    incorrect steps."""
    weight: Literal["none", "count", "precision"] = "none"
    """Loss weight of a label, scaled to mean 1. none: equal weights; count: number of rollouts with a known verdict;
    precision: 1 / variance of the value's Beta posterior."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Holds the target value and weight of each step in a path; the value is NaN if a step has no target."""

    values: tuple[float, ...]
    weights: tuple[float, ...]


def make_targets(examples: Sequence[LabeledExample], config: TargetConfig) -> list[Targets]:
    """Compute the step targets of each path, in the order of the paths.

    The label of a shared prefix is stored on one path only, so incorrect prefixes are collected over all paths. Weights
    have mean 1 over all paths.
    """
    # Two passes: a path may contain a prefix whose label is stored on a later path.
    incorrect = _incorrect_prefixes(examples, config.error_value)
    values = [_values(example.path, incorrect, config) for example in examples]
    weights = _weights(examples, values, config)
    return [Targets(tuple(value), tuple(weight)) for value, weight in zip(values, weights, strict=True)]


def precision(correct: float, incorrect: float) -> float:
    """Return the precision 1 / σ² of the Beta posterior under a flat prior.

    σ² = ab / ((a + b)² (a + b + 1)) with a = 1 + correct and b = 1 + incorrect rollouts.
    """
    return posterior_deviation(correct, incorrect) ** -2


_WEIGHTS: dict[str, Callable[[float, float], float]] = {
    "none": lambda value, known: 1.0,
    "count": lambda value, known: known,
    "precision": lambda value, known: precision(value * known, (1 - value) * known),
}
"""Functions that compute a label's weight, before scaling, from its Monte Carlo value and number of known verdicts."""


def _values(path: LabeledPath, incorrect: set[tuple[str, Steps]], config: TargetConfig) -> list[float]:
    if config.steps == "last":
        last = _target(path.counts[-1], config) if path.complete else NO_TARGET
        return [NO_TARGET] * (len(path.steps) - 1) + [last]
    targets = [_target(counts, config) for counts in path.counts]
    prefixes = [(path.problem_id, path.steps[:depth]) for depth in range(1, len(targets) + 1)]
    error = next((position for position, prefix in enumerate(prefixes) if prefix in incorrect), None)
    if config.after_error == "mask" and error is not None:
        targets[error + 1 :] = [NO_TARGET] * (len(targets) - error - 1)
    if config.correct_solutions == "all_steps" and error is None and path.complete and path.counts[-1] == CORRECT:
        targets = [1.0 if math.isnan(target) else target for target in targets]
    return targets


def _target(counts: Counts | None, config: TargetConfig) -> float:
    if counts is None or counts.value is None:
        return NO_TARGET
    return counts.value if config.kind == "soft" else float(counts.value > config.error_value)


def _weights(
    examples: Sequence[LabeledExample], values: Sequence[list[float]], config: TargetConfig
) -> list[list[float]]:
    """Compute the weights of all targets, scaled to mean 1.

    A solution's final verdict is not an estimate, so it weighs as much as the label with the most rollouts. A target
    without counts weighs 1, the mean.
    """
    most = max((counts.known for example in examples for counts in example.path.counts if counts), default=1)
    raw: list[list[float | None]] = []
    for example, targets in zip(examples, values, strict=True):
        path, row = example.path, []
        for position, (counts, target) in enumerate(zip(path.counts, targets, strict=True)):
            verdict = path.complete and position == len(targets) - 1
            if math.isnan(target) or counts is None or counts.value is None:
                row.append(None)  # no target, or a target of 1 that no rollouts support
            else:
                row.append(_WEIGHTS[config.weight](counts.value, most if verdict else counts.known))
        raw.append(row)
    known = [weight for row in raw for weight in row if weight is not None]
    mean = sum(known) / len(known) if known else 1.0
    return [[1.0 if weight is None else weight / mean for weight in row] for row in raw]


def _incorrect_prefixes(examples: Sequence[LabeledExample], error_value: float) -> set[tuple[str, Steps]]:
    return {
        (example.path.problem_id, example.path.steps[:depth])
        for example in examples
        for depth, counts in enumerate(example.path.counts, start=1)
        if counts is not None and counts.value is not None and counts.value <= error_value
    }
