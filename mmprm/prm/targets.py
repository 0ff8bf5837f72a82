"""Compute the target and weight of each labeled step from its rollout counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.labels.parquet import LabeledExample
from mmprm.trees.stopping import posterior_deviation
from mmprm.types import Counts, LabeledPath, Steps

NO_TARGET = float("nan")


class TargetConfig(Config):
    kind: Literal["soft", "hard", "progress", "first_error"] = "soft"
    """How to compute the target of a step with Monte Carlo value V. soft: V. hard: 1 if V > error_value, else 0.
    progress: (1 + V - V of the step before) / 2, so that 0.5 means no progress. first_error: 1 for all steps up to the
    last prefix with V > error_value, 0 for the first prefix with V <= error_value, and no target for the others."""
    error_value: float = Field(0.0, ge=0, lt=1)
    """Monte Carlo value at or below which a prefix counts as incorrect."""
    steps: Literal["all", "last"] = "all"
    """Steps to train on. all: every labeled step; last: the last step of each complete solution, with the final verdict
    as its target, which trains an outcome reward model."""
    after_error: Literal["keep", "mask"] = "keep"
    """Targets to use after the first incorrect prefix. keep: all of them; mask: none."""
    correct_solutions: Literal["last_step", "all_steps"] = "last_step"
    """How to treat unlabeled steps of a correct solution in which no labeled prefix is incorrect. last_step: no target;
    all_steps: target 1. Search labels few correct steps late in a solution, but a correct answer can follow from
    incorrect steps."""
    weight: Literal["none", "count", "precision"] = "none"
    """Loss weight of a label, scaled to mean 1. none: equal weights; count: number of rollouts with a known verdict;
    precision: 1 / variance of the value's Beta posterior."""

    @model_validator(mode="after")
    def _applies(self) -> TargetConfig:
        if self.steps == "last" and self.kind not in ("soft", "hard"):
            raise ValueError(f"steps=last takes the verdict itself as target; set kind=soft instead of {self.kind}")
        if self.correct_solutions == "all_steps" and self.kind == "progress":
            raise ValueError(
                "correct_solutions=all_steps gives values, which kind=progress cannot use; set kind=soft or "
                "correct_solutions=last_step"
            )
        return self


@dataclass(frozen=True, slots=True)
class Targets:
    """Holds the target value and weight of each step in a path. The value is NaN if a step has no target."""

    values: tuple[float, ...]
    weights: tuple[float, ...]


def make_targets(examples: Sequence[LabeledExample], config: TargetConfig) -> list[Targets]:
    """Compute the step targets of each path, in the order of the paths.

    The label of a shared prefix is stored on one path only, so incorrect prefixes are collected over all paths. Weights
    have mean 1 over all paths.
    """
    # Two passes: a path may contain a prefix whose label is stored on a later path.
    known = prefix_values(examples)
    values = [_KINDS[config.kind](example.path, known, config) for example in examples]
    if config.kind == "first_error":
        _keep_first(examples, values)
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


PrefixValues = dict[tuple[str, Steps], float]
"""Maps (problem id, steps) to the Monte Carlo value of the prefix that consists of these steps."""


def prefix_values(examples: Sequence[LabeledExample]) -> PrefixValues:
    """Collect the Monte Carlo values of all labeled prefixes. The empty prefix has the value of the root, if it is
    stored."""
    found: PrefixValues = {}
    for example in examples:
        path = example.path
        if path.root_value is not None:
            found[path.problem_id, ()] = path.root_value
        for depth, counts in enumerate(path.counts, start=1):
            if counts is not None and counts.value is not None:
                found[path.problem_id, path.steps[:depth]] = counts.value
    return found


def _value_targets(path: LabeledPath, known: PrefixValues, config: TargetConfig) -> list[float]:
    if config.steps == "last":
        last = _target(path.counts[-1], config) if path.complete else NO_TARGET
        return [NO_TARGET] * (len(path.steps) - 1) + [last]
    targets = [_target(counts, config) for counts in path.counts]
    error = _first_error(path, known, config)
    if config.after_error == "mask" and error is not None:
        targets[error + 1 :] = [NO_TARGET] * (len(targets) - error - 1)
    verdict = path.counts[-1] if path.complete else None
    if config.correct_solutions == "all_steps" and error is None and verdict is not None and verdict.value == 1:
        targets = [1.0 if math.isnan(target) else target for target in targets]
    return targets


def _progress_targets(path: LabeledPath, known: PrefixValues, config: TargetConfig) -> list[float]:
    """Compute the progress target of each labeled step t: (1 + V_t - V_{t-1}) / 2, with V_t the Monte Carlo value after
    step t.

    A step has no target if V_{t-1} is unknown. V_t - V_{t-1} is the process advantage of Setlur et al. (2024),
    "Rewarding Progress", here with the policy itself as the prover. It lies in [-1, 1], and the PRM predicts
    probabilities. Over a path, 2 * target - 1 sums to the value of the last step minus that of the root. Each label of
    a shared prefix gives one target, as in the other kinds.
    """
    targets = []
    for depth, counts in enumerate(path.counts, start=1):
        before = known.get((path.problem_id, path.steps[: depth - 1]))
        labeled = counts is not None and counts.value is not None and before is not None
        targets.append((1 + counts.value - before) / 2 if labeled else NO_TARGET)
    if config.after_error == "mask" and (error := _first_error(path, known, config)) is not None:
        targets[error + 1 :] = [NO_TARGET] * (len(targets) - error - 1)
    return targets


def _first_error_targets(path: LabeledPath, known: PrefixValues, config: TargetConfig) -> list[float]:
    """Compute the targets of a path up to its first error: y_t = 1 for t <= c, 0 for t = e, and no target otherwise.

    e is the first step with V_e <= error_value, and c is the last step before e with V_c > error_value. A correct
    rollout from the prefix c also continues every shorter prefix, so the unlabeled steps up to c are correct as well.
    The steps between c and e could contain the error and have no target.
    """
    values = _values_of(path, known)
    error = _first_error(path, known, config)
    before = values if error is None else values[:error]
    correct = [step for step, value in enumerate(before) if value is not None and value > config.error_value]
    targets = [NO_TARGET] * len(path.steps)
    if correct:
        targets[: correct[-1] + 1] = [1.0] * (correct[-1] + 1)
    if error is not None:
        targets[error] = 0.0
    return targets


def _keep_first(examples: Sequence[LabeledExample], values: Sequence[list[float]]) -> None:
    """Keep the target of a prefix only on the first path that contains it, so that each prefix is trained on once."""
    placed: set[tuple[str, Steps]] = set()
    for example, targets in zip(examples, values, strict=True):
        for depth in range(1, len(targets) + 1):
            prefix = example.path.problem_id, example.path.steps[:depth]
            if prefix in placed:
                targets[depth - 1] = NO_TARGET
            elif not math.isnan(targets[depth - 1]):
                placed.add(prefix)


_KINDS: dict[str, Callable[[LabeledPath, PrefixValues, TargetConfig], list[float]]] = {
    "soft": _value_targets,
    "hard": _value_targets,
    "progress": _progress_targets,
    "first_error": _first_error_targets,
}


def _target(counts: Counts | None, config: TargetConfig) -> float:
    if counts is None or counts.value is None:
        return NO_TARGET
    return counts.value if config.kind == "soft" else float(counts.value > config.error_value)


def _values_of(path: LabeledPath, known: PrefixValues) -> list[float | None]:
    return [known.get((path.problem_id, path.steps[:depth])) for depth in range(1, len(path.steps) + 1)]


def _first_error(path: LabeledPath, known: PrefixValues, config: TargetConfig) -> int | None:
    """Return the index of the first step with a value of at most `error_value`, or None if there is none."""
    values = enumerate(_values_of(path, known))
    return next((step for step, value in values if value is not None and value <= config.error_value), None)


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
