"""Measure a demo run against the ground truth, compare its metrics with thresholds, and build the report page."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mmprm.evaluation.aggregators import AggregatorChoice, choose_aggregator
from mmprm.evaluation.prm_evaluation import METRICS, PrmEvaluation, judge
from mmprm.labels.parquet import LabeledExample
from mmprm.metrics import bootstrap_means, roc_auc
from mmprm.report.data import Headline, PolicyGain, ReportData, TrainingPoint, extremes
from mmprm.selection.accuracy import AccuracyAtN, accuracy_at_n
from mmprm.selection.groups import CandidateGroup, common_size
from mmprm.tiny.truth import judged_solutions, label_truth, steps_correct
from mmprm.types import Verdict


@dataclass(frozen=True, slots=True)
class DemoMetrics:
    """Holds the demo's metrics, computed against the ground truth.

    `accuracy` is measured on test problems and has one entry per number of candidates N = 1, 2, 4, …
    """

    labels: list[float]
    labels_correct: list[bool]
    label_auc: float
    aggregator: AggregatorChoice
    first_error: PrmEvaluation
    accuracy: list[AccuracyAtN]


def measure(
    examples: Sequence[LabeledExample], development: Sequence[CandidateGroup], test: Sequence[CandidateGroup]
) -> DemoMetrics:
    """Choose the aggregator and threshold on `development`, then compute the demo's metrics on `test`. Both need PRM
    scores."""
    labels, labels_correct = label_truth(examples)
    aggregator = choose_aggregator(development)
    threshold = METRICS["first_error_f1"].choose(judged_solutions(development))
    most = common_size(test)
    sizes = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return DemoMetrics(
        labels=labels,
        labels_correct=labels_correct,
        label_auc=roc_auc(labels, labels_correct),
        aggregator=aggregator,
        first_error=judge("tiny", "first_error_f1", judged_solutions(test), threshold=threshold),
        accuracy=accuracy_at_n(test, aggregator.name, sizes),
    )


def summary_of(metrics: DemoMetrics) -> dict[str, Any]:
    """Return the metrics for summary.json; `accuracy` is measured with the largest number of candidates."""
    last, pooled = metrics.accuracy[-1], metrics.first_error.pooled
    first_error = {name: asdict(interval) for name, interval in {"f1": pooled.f1, **pooled.parts}.items()}
    return {
        "label_auc": metrics.label_auc,
        "prm_step_f1": pooled.f1.value,
        "accuracy": {name: interval.value for name, interval in last.accuracy.items()},
        "accuracy_n": last.n,
        "prm_minus_random": asdict(last.minus_random["prm"]),
        "prm_minus_majority": asdict(last.minus_majority["prm"]),
        "first_error": {"threshold": metrics.first_error.threshold, **first_error},
        "aggregator": asdict(metrics.aggregator),
        "accuracy_at_n": {
            point.n: {name: asdict(i) for name, i in point.accuracy.items()} for point in metrics.accuracy
        },
    }


def gain_of(before: Sequence[CandidateGroup], after: Sequence[CandidateGroup], metrics: Path) -> PolicyGain:
    """Compare the accuracy of two policies, measured from samples on the same problems.

    The accuracy of a problem is the share of correct answers among those with a known verdict. Problems without one on
    either side are excluded. `metrics` is the path of the training run's metrics.jsonl.
    """
    pairs = [(_share_correct(old), _share_correct(new)) for old, new in zip(before, after, strict=True)]
    assert [group.problem.id for group in before] == [group.problem.id for group in after], "the same problems"
    # Keep only problems with an accuracy on both sides, because the gain's interval is paired by problem.
    known = np.array([pair for pair in pairs if None not in pair])
    olds, news = known.T
    records = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    rollouts = [(record["step"], record["accuracy"]) for record in records if record["kind"] == "train"]
    return PolicyGain(*bootstrap_means([olds, news, news - olds], seed=0), problems=len(known), rollouts=rollouts)


def gain_summary(gain: PolicyGain) -> dict[str, Any]:
    """Return the policy's gain in accuracy for summary.json."""
    return {
        "accuracy_before": gain.before.value,
        "accuracy_after": gain.after.value,
        "gain": asdict(gain.gain),
        "problems": gain.problems,
        "steps": gain.rollouts[-1][0],
    }


def _share_correct(group: CandidateGroup) -> float | None:
    verdicts = [candidate.verdict for candidate in group.candidates if candidate.verdict is not Verdict.UNKNOWN]
    return fmean(verdict is Verdict.CORRECT for verdict in verdicts) if verdicts else None


Rule = tuple[str, str, Callable[[Mapping[str, Any]], bool]]

BARS: Sequence[Rule] = (
    ("seconds_total", "at most 900", lambda s: s["seconds_total"] <= 900),
    ("problems", "at least 150", lambda s: s["problems"] >= 150),
    ("labels", "at least 3,000", lambda s: s["labels"] >= 3000),
    ("label_auc", "at least 0.95", lambda s: s["label_auc"] >= 0.95),
    ("prm_step_f1", "at least 0.80", lambda s: s["prm_step_f1"] >= 0.80),
    ("accuracy.prm", "at least random + 0.20", lambda s: s["accuracy"]["prm"] >= s["accuracy"]["random"] + 0.20),
    ("accuracy.prm", "at least majority", lambda s: s["accuracy"]["prm"] >= s["accuracy"]["majority"]),
    ("policy_blank_image_accuracy", "below 0.15", lambda s: s["policy_blank_image_accuracy"] < 0.15),
    ("trees_in_flight_max", "at least 64", lambda s: s["trees_in_flight_max"] >= 64),
    ("rl.accuracy_after", "gain above 0 (95 %)", lambda s: s["rl"]["gain"]["low"] > 0),
)
REPORTED = ("labels_terminal", "accuracy.random", "accuracy.majority", "accuracy.weighted", "accuracy.oracle")
REPORTED += ("untrained.prm_step_f1", "untrained.accuracy_prm", "tokens_per_second")
REPORTED += ("rl.accuracy_before", "rl.gain.value", "rl.gain.low", "rl.gain.high")


def headlines_of(summary: Mapping[str, Any]) -> list[Headline]:
    """Return the metrics that must reach a threshold, followed by those that are only reported."""
    barred = [Headline(key, _value(summary, key), bar, rule(summary)) for key, bar, rule in BARS]
    return barred + [Headline(key, _value(summary, key)) for key in REPORTED]


def report_of(
    metrics: DemoMetrics,
    test: Sequence[CandidateGroup],
    headlines: Sequence[Headline],
    metrics_log: Path,
    policy: PolicyGain,
    facts: Mapping[str, str],
) -> ReportData:
    """Build the content of the demo's report page."""
    best, worst = extremes(test, metrics.aggregator.name, truth=steps_correct)
    return ReportData(
        title="From problems to a process reward model",
        subtitle="The built-in toy world: images of digits, questions about them, and the truth of every step.",
        headlines=headlines,
        accuracy=metrics.accuracy,
        problems=len(test),
        aggregator=metrics.aggregator.name,
        labels=metrics.labels,
        labels_correct=metrics.labels_correct,
        training=training_points(metrics_log),
        best=best,
        worst=worst,
        policy=policy,
        facts=facts,
    )


def training_points(metrics: Path) -> list[TrainingPoint]:
    """Read the training curve from the metrics.jsonl of a run."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = {"train": "loss", "eval": "held_out_loss"}
    return [TrainingPoint(step=line["step"], **{losses[line["kind"]]: line["loss"]}) for line in lines]


def _value(summary: Mapping[str, Any], key: str) -> Any:
    for name in key.split("."):
        summary = operator.getitem(summary, name)
    return summary
