"""Monitor a run for reward hacking: compute metrics, and end the run if an alarm triggers.

Shapes: S step of a response.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from pydantic import Field, field_validator, model_validator

from mmprm.config import Config
from mmprm.errors import ConfigError, TrainingError
from mmprm.metrics import roc_auc
from mmprm.steps import StepFormat
from policy_rl.graded import GradedGroup
from policy_rl.monitor.phrases import REFLECTION, RELOOK, words_of
from policy_rl.monitor.samples import TEXT_FILE
from policy_rl.rewards.cutter import steps_of

FIRST_STEPS = 5
"""Number of initial solution steps whose scores are logged separately. Later steps are logged together."""


class Bounds(Config):
    """Configures the allowed range of a monitored metric."""

    min: float | None = None
    """Lower bound; a training step with a lower value counts toward the alarm."""
    max: float | None = None
    """Upper bound; a training step with a higher value counts toward the alarm."""

    @model_validator(mode="after")
    def _a_bound(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("an alarm needs a bound; set min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min} must not exceed max={self.max}; lower min or raise max")
        return self


class MonitorConfig(Config):
    """Configures the monitoring of a run for reward hacking."""

    alarms: dict[str, Bounds] = Field(default_factory=dict)
    """Bounds of metrics, keyed by their names in metrics.jsonl, such as alarms.prm_auc.min=0.6. If a metric is out of
    bounds for `patience` consecutive steps, the run writes a checkpoint and ends."""
    patience: int = Field(3, ge=1)
    """Number of consecutive steps for which a metric must be out of bounds to trigger an alarm."""
    samples: int = Field(4, ge=0)
    """Number of responses per step to write to samples.jsonl and samples.md, with their step scores."""
    reflection_phrases: tuple[str, ...] | None = None
    """Phrases that count as reflection, such as "double-check". Their mean number per response is logged as
    reflection_phrases. null: a built-in English list; []: do not count."""
    relook_phrases: tuple[str, ...] | None = None
    """Phrases that count as looking at the image again, such as "look closer"; logged as relook_phrases. null: a
    built-in English list; []: do not count."""

    @field_validator("reflection_phrases", "relook_phrases")
    @classmethod
    def _phrases_have_words(cls, phrases: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for phrase in phrases or ():
            if not words_of(phrase):
                raise ValueError(f"the phrase {phrase!r} has no word, so it would match nothing; remove it")
        return phrases

    @property
    def phrases(self) -> dict[str, tuple[str, ...]]:
        """Return the lists of phrases to count, by the name of their metric."""
        return {
            "reflection_phrases": REFLECTION if self.reflection_phrases is None else self.reflection_phrases,
            "relook_phrases": RELOOK if self.relook_phrases is None else self.relook_phrases,
        }


def hacking_metrics(groups: Sequence[GradedGroup], step_format: StepFormat, prefill: str = "") -> dict[str, float]:
    """Compute reward-hacking metrics over the responses with a known reward. Undefined metrics are NaN.

    steps: mean number of steps per response
    step_tokens, longest_step: mean tokens per step, and per longest step of a response
    repeated_steps: fraction of steps that repeat an earlier step of the response, ignoring whitespace and case
    unsplit: fraction of responses that could not be split into steps
    refused: fraction of responses that were split but not scored, although others were
    prm_auc: P(lowest step score of a correct response > that of an incorrect one), ties count ½; 0.5 means that PRM and
        outcome are unrelated
    prm_score, prm_lowest: mean step score, and mean of the responses' lowest scores
    prm_step_1 …: mean score of the first, second, … step; prm_step_later: that of the steps after FIRST_STEPS
    """
    responses = [each for group in groups for each in group.responses if each.reward.total is not None]
    cut = [steps_of(each.response, step_format, prefill).steps for each in responses]
    split_up = [steps for steps in cut if steps]
    scored = [each for each in responses if each.process is not None]
    spans = [_tokens_of_steps(each.process.step_of_token) for each in scored]
    lowest = [min(each.process.scores) for each in scored]
    known = [index for index, each in enumerate(scored) if each.reward.parts["accuracy"] is not None]
    # If no response is scored, there may be no PRM, so none counts as refused.
    refused = []
    if scored:
        refused = [bool(steps) and each.process is None for steps, each in zip(cut, responses, strict=True)]
    by_step = _by_step([each.process.scores for each in scored])
    return {
        "steps": _mean([len(steps) for steps in split_up]),
        "step_tokens": _mean([tokens for span in spans for tokens in span]),
        "longest_step": _mean([max(span) for span in spans]),
        "repeated_steps": _mean([mark for steps in split_up for mark in repeated(steps)]),
        "unsplit": _mean([not steps for steps in cut]),
        "refused": _mean(refused),
        "prm_auc": agreement([lowest[index] for index in known], [scored[index].correct for index in known]),
        "prm_score": _mean([score for each in scored for score in each.process.scores]),
        "prm_lowest": _mean(lowest),
        **{name: _mean(scores) for name, scores in by_step.items()},
    }


def agreement(scores: Sequence[float], correct: Sequence[bool]) -> float:
    """Return the ROC AUC of the scores for correct versus incorrect responses, or NaN if either class is empty."""
    return roc_auc(scores, correct) if len(set(correct)) == 2 else math.nan


def repeated(steps: Sequence[str]) -> list[bool]:
    """Return, for each step, whether it repeats an earlier one, ignoring whitespace and case."""
    keys = ["".join(step.split()).casefold() for step in steps]
    return [key in keys[:position] for position, key in enumerate(keys)]


def _tokens_of_steps(step_of_token: np.ndarray) -> list[int]:
    return np.bincount(step_of_token[step_of_token >= 0]).tolist()


def _by_step(scores: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {f"prm_step_{number}": [] for number in range(1, FIRST_STEPS + 1)}
    found["prm_step_later"] = []
    for scores_S in scores:
        for position, score in enumerate(scores_S, start=1):
            found[f"prm_step_{position}" if position <= FIRST_STEPS else "prm_step_later"].append(score)
    return found


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


class Alarms:
    """Counts for how many consecutive steps each metric has been out of bounds.

    `counts` is the complete state. Infinite values are compared like finite ones. NaN carries no information: it
    neither increases nor resets the count.
    """

    def __init__(self, config: MonitorConfig) -> None:
        self._config = config
        self.counts: dict[str, int] = dict.fromkeys(config.alarms, 0)

    def see(self, metrics: Mapping[str, float]) -> str | None:
        """Update the counts; return a message if a metric has been out of bounds for `patience` steps, else None.

        If this returns a message, the caller saves the run and raises `alarm_error`. Raises ConfigError if an alarm is
        set on a metric that is not in `metrics`; do not pass the metrics of a step without an update, which are fewer.
        """
        check_alarms(self._config, metrics)
        crossed = []
        for name, bounds in self._config.alarms.items():
            value = metrics[name]
            if math.isnan(value):
                continue
            bound = _crossed(value, bounds)
            self.counts[name] = self.counts[name] + 1 if bound else 0
            if self.counts[name] >= self._config.patience:
                crossed.append(f"{name}={value:.4g} is {bound} (monitor.alarms) for {self.counts[name]} steps")
        return "; ".join(crossed) or None


def check_alarms(config: MonitorConfig, names: Collection[str]) -> None:
    """Raise ConfigError if an alarm is set on a metric that is not in `names`."""
    for name in config.alarms:
        if name not in names:
            raise ConfigError(
                f"monitor.alarms.{name}: this run does not log this metric; use one of {', '.join(sorted(names))}"
            )


def _crossed(value: float, bounds: Bounds) -> str | None:
    if bounds.min is not None and value < bounds.min:
        return f"below min={bounds.min:g}"
    if bounds.max is not None and value > bounds.max:
        return f"above max={bounds.max:g}"
    return None


def alarm_error(step: int, crossed: str, checkpoint: Path | None) -> TrainingError:
    """Create the error that ends a run after an alarm."""
    last = f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"
    return TrainingError(
        f"step {step}: {crossed}; {last}. Read {TEXT_FILE} to see what the policy does; then change the rewards, or "
        "resume with a wider bound"
    )
