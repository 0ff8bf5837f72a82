"""Select the labels and solutions to train on. All functions are pure and independent of the order of the file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from mmprm.config import Config
from mmprm.errors import ConfigError
from mmprm.labels.consensus import AGREEMENTS, AgreementRule, Prefix, prefixes_of, relabeled
from mmprm.labels.parquet import LabeledExample
from mmprm.trees.stopping import posterior_deviation
from mmprm.types import Counts


class SelectionConfig(Config):
    min_rollouts: int = Field(0, ge=0)
    """Minimum number of rollouts with a known verdict per label. Verdicts of complete solutions are always kept."""
    max_posterior_std: float | None = Field(None, gt=0, le=0.5)
    """Maximum standard deviation of a label's Beta posterior; null keeps all. Verdicts of complete solutions are always
    kept."""
    agree: Literal["steps", "first_errors"] | None = None
    """Required agreement with the judge of mmprm consensus. steps: keep only labels that the judge confirms;
    first_errors: keep only solutions in which both find the first error at the same step."""
    rule: AgreementRule = AgreementRule()
    """Thresholds at which the label and the judge count a step as correct."""
    informative: float = Field(1.0, gt=0, le=1)
    """Share of the solutions to keep, namely those with the highest balanced information score."""
    alpha: float = Field(0.05, ge=0)
    """Weight of solutions whose steps are all positive or all negative in the balanced information score. A larger
    value suits a smaller share of solutions to keep."""


@dataclass(frozen=True, slots=True)
class SelectionCounts:
    """Counts the labels that each rule of a selection removed, and the solutions left."""

    agree: int
    min_rollouts: int
    max_posterior_std: int
    informative: int
    solutions: int


def select_labels(
    examples: Sequence[LabeledExample], config: SelectionConfig
) -> tuple[list[LabeledExample], SelectionCounts]:
    """Apply the rules for agreement, rollouts, posterior and information, in this order; return the examples that still
    have labels, with counts.

    Raises ConfigError if agreement is required and no example was judged.
    """
    counts = [_label_count(examples)]
    if config.agree is not None:
        if all(example.judged is None for example in examples):
            raise ConfigError(f"agree={config.agree} needs a judge, and the labels have none; run mmprm consensus")
        examples = AGREEMENTS[config.agree](examples, config.rule)
    counts.append(_label_count(examples))
    examples = _keep_labels(examples, lambda label: label.known >= config.min_rollouts)
    counts.append(_label_count(examples))
    if config.max_posterior_std is not None:
        limit = config.max_posterior_std
        examples = _keep_labels(examples, lambda label: _posterior_std(label) <= limit)
    counts.append(_label_count(examples))
    if config.informative < 1:
        examples = keep_informative(examples, config.informative, config.alpha)
    counts.append(_label_count(examples))
    removed = [before - after for before, after in itertools.pairwise(counts)]
    return list(examples), SelectionCounts(*removed, solutions=len(examples))


def balanced_information(values: Sequence[float], alpha: float) -> float:
    """Return the balanced information score (p (1 - p) + alpha) R of a solution's step values.

    p is the share of positive steps (value > 0), and R the mean value of the positive steps, or 1 if there is none.
    Solutions with both kinds of steps and reliable positive steps score highest. Source: "Training Data Efficiency in
    Multimodal Process Reward Models" (2026). `values` must not be empty.
    """
    positive = [value for value in values if value > 0]
    share = len(positive) / len(values)
    reliability = sum(positive) / len(positive) if positive else 1.0
    return (share * (1 - share) + alpha) * reliability


def keep_informative(examples: Sequence[LabeledExample], share: float, alpha: float) -> list[LabeledExample]:
    """Keep the given share of the solutions, at least one, choosing the highest balanced information scores.

    Ties are broken by hash. A score uses all labels of a solution's prefixes, including those stored on another path. A
    kept prefix keeps its label: it is stored on the first kept path that contains it.
    """
    known = _known_labels(examples)
    scored = []
    for index, example in enumerate(examples):
        labels = [known[prefix] for prefix in prefixes_of(example) if prefix in known]
        score = balanced_information([label.value or 0.0 for label in labels], alpha)
        content = json.dumps([example.problem.id, example.path.steps])
        scored.append((-score, hashlib.sha256(content.encode()).digest(), index))
    chosen = {index for *_, index in sorted(scored)[: max(1, int(share * len(examples)))]}
    placed: set[Prefix] = set()
    kept = []
    for index, example in enumerate(examples):
        if index not in chosen:
            continue
        prefixes = prefixes_of(example)
        labels = [known.get(prefix) if prefix not in placed else None for prefix in prefixes]
        placed.update(prefixes)
        kept.append(replace(example, path=replace(example.path, counts=tuple(labels))))
    return [example for example in kept if any(label is not None for label in example.path.counts)]


def _keep_labels(examples: Sequence[LabeledExample], keep: Callable[[Counts], bool]) -> list[LabeledExample]:
    """Drop the labels that `keep` rejects, except the verdicts of complete solutions, which are not estimates."""
    kept = []
    for example in examples:
        counts = example.path.counts
        verdict = len(counts) - 1 if example.path.complete else None
        kept.append(
            relabeled(
                example,
                [
                    label if label is not None and (index == verdict or keep(label)) else None
                    for index, label in enumerate(counts)
                ],
            )
        )
    return [example for example in kept if _label_count([example])]


def _posterior_std(label: Counts) -> float:
    value = label.value or 0.0
    return posterior_deviation(value * label.known, (1 - value) * label.known)


def _label_count(examples: Sequence[LabeledExample]) -> int:
    return sum(label is not None for example in examples for label in example.path.counts)


def _known_labels(examples: Sequence[LabeledExample]) -> dict[Prefix, Counts]:
    return {
        prefix: label
        for example in examples
        for prefix, label in zip(prefixes_of(example), example.path.counts, strict=True)
        if label is not None and label.value is not None
    }
