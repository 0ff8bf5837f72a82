"""Build labels with `mmprm labels`, and measure how well they agree with the truth of the steps (AUC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.real.truth import known_of, steps_true
from benchmarks.real.workspace import Results, Workspace, run_command
from mmprm.evaluation.label_quality import KnownSteps, judged_labels, no_error_so_far
from mmprm.evaluation.prm_evaluation import ScoredSolution, step_outcomes
from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.metrics import Interval, bootstrap, roc_auc
from mmprm.types import Problem, Steps


def measure(workspace: Workspace) -> Results:
    """Label the trees of the adaptive campaign, and compare the labels with the truth."""
    examples = build(workspace, "adaptive")
    items = judged(examples, workspace)
    auc = auc_interval(items)
    labels_K, correct_K = step_outcomes(items)
    return {
        "auc": auc.value,
        "auc_interval": [auc.low, auc.high],
        "judged": len(labels_K),
        "correct_share": float(correct_K.mean()),
        "labels": count(examples),
        "auc_by_rollouts": _by_rollouts(examples, workspace),
        "mix": _mix(examples),
    }


def build(workspace: Workspace, name: str, problems: Sequence[str] | None = None) -> list[LabeledExample]:
    """Write the labels of the campaign `name` with `mmprm labels`, optionally only for some problems."""
    whole = workspace.folder / "labels" / f"{name}-all.parquet"
    run_command("labels", None, {"store": workspace.folder / name, "output": whole, "dev": 0.1})
    examples = read_parquet(whole)
    if problems is not None:
        examples = [example for example in examples if example.problem.id in set(problems)]
    write_parquet(labels_path(workspace, name), examples)
    return examples


def labels_path(workspace: Workspace, name: str) -> Path:
    return workspace.folder / "labels" / f"{name}.parquet"


def count(examples: Sequence[LabeledExample]) -> int:
    """Count the distinct labels that are estimates, not verdicts on complete solutions."""
    return sum(
        counts is not None
        for example in examples
        for counts in (example.path.counts[:-1] if example.path.complete else example.path.counts)
    )


def truth_by_problem(problems: Mapping[str, Problem]) -> KnownSteps:
    """Return a function that tells which steps of a generated problem have no error so far."""

    def known(problem: Problem, steps: Steps) -> list[bool | None]:
        return no_error_so_far(steps_true(steps, known_of(problems[problem.id])))

    return known


def judged(examples: Sequence[LabeledExample], workspace: Workspace) -> list[ScoredSolution]:
    """Pair the labels with the truth of their steps."""
    return judged_labels(examples, truth_by_problem(workspace.load("annotate")), "generated")


def auc_interval(items: Sequence[ScoredSolution]) -> Interval:
    """Return the AUC of the labels of judged steps, with an interval over problems."""
    labels_K, correct_K = step_outcomes(items)
    problems = [item.problem for item, _ in items for correct in item.correct if correct is not None]

    def auc(indices: np.ndarray) -> float:
        correct = correct_K[indices]
        return float("nan") if correct.all() or not correct.any() else roc_auc(labels_K[indices], correct)

    return bootstrap(auc, problems, 0)


BANDS = {"5 to 15": (5, 15), "16 and more": (16, 10**9)}
"""Ranges of rollout counts by which labels are grouped."""


def _in_band(examples: Sequence[LabeledExample], low: int, high: int) -> list[LabeledExample]:
    """Keep only the labels that are based on `low` to `high` rollouts with a known verdict."""

    def kept(example: LabeledExample) -> LabeledExample:
        counts = tuple(c if c is not None and low <= c.known <= high else None for c in example.path.counts)
        return replace(example, path=replace(example.path, counts=counts))

    return [kept(example) for example in examples]


def _by_rollouts(examples: Sequence[LabeledExample], workspace: Workspace) -> Results:
    found: Results = {}
    for name, band in BANDS.items():
        items = judged(_in_band(examples, *band), workspace)
        correct_K = step_outcomes(items)[1]
        enough = len(correct_K) and correct_K.any() and not correct_K.all()
        found[name] = asdict(auc_interval(items)) if enough else None
    return found


def _mix(examples: Sequence[LabeledExample]) -> dict[str, float]:
    """Return the fraction of labels in each range of rollout counts."""
    total = count(examples)
    return {name: count(_in_band(examples, *band)) / max(1, total) for name, band in BANDS.items()}
