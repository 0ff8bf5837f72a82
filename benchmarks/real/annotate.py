"""Compare adaptive rollouts with a fixed number per state: tokens per distinct label, and errors of the labels.

`adaptive` are the default settings, and `precise` are settings for labels about as precise as those of `fixed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.real.annotated import Annotated, State, annotate, fresh_values, sample_states
from benchmarks.real.workspace import Results, Workspace
from mmprm.metrics import Interval, bootstrap

NAMES = ("adaptive", "precise", "fixed")


def measure(workspace: Workspace) -> Results:
    """Run the campaigns and compare their costs on the same problems. Finished parts are reused."""
    whole = {name: annotate(workspace, name) for name in NAMES}
    runs = on_same_problems(whole)
    ratios = {name: token_ratio(runs[name], runs["fixed"]) for name in NAMES[:-1]}
    return {
        "token_ratio": ratios["precise"].value,
        "token_ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
        "problems": len(runs["fixed"].problems),
        "tokens_per_label": {name: tokens_per_label(run) for name, run in runs.items()},
        "rollouts_per_label": {name: run.rollouts / max(1, len(run.labels)) for name, run in runs.items()},
        "labels": {name: len(run.labels) for name, run in runs.items()},
        "tokens": {name: run.tokens for name, run in runs.items()},
        "ended": {name: Counter(problem.reason for problem in run.problems.values()) for name, run in runs.items()},
        "whole_campaigns": {name: totals(run) for name, run in whole.items()},
    }


def on_same_problems(runs: Mapping[str, Annotated]) -> dict[str, Annotated]:
    """Keep only the problems that all campaigns annotated."""
    common = [name for name in runs["fixed"].problems if all(name in run.problems for run in runs.values())]
    return {name: run.only(common) for name, run in runs.items()}


def totals(run: Annotated) -> Results:
    return {
        "problems": len(run.problems),
        "labels": len(run.labels),
        "rollouts": run.rollouts,
        "tokens": run.tokens,
        "seconds": run.seconds,
    }


def measure_errors(workspace: Workspace) -> Results:
    """Compare the labels of both campaigns with the values from fresh rollouts."""
    runs = on_same_problems({name: annotate(workspace, name) for name in NAMES})
    count = workspace.sizes.states // 2
    chosen = {name: sample_states(run.labels, count, seed=0) for name, run in runs.items()}
    truth = fresh_values(workspace, [state for states in chosen.values() for state in states])
    return {
        "states": sum(map(len, chosen.values())),
        "fresh_rollouts": workspace.sizes.fresh,
        "errors": {name: errors(runs[name].labels, chosen[name], truth) for name in runs},
        "rmse_differences": {name: asdict(rmse_difference(name, runs, chosen, truth)) for name in NAMES[:-1]},
    }


def tokens_per_label(run: Annotated) -> float:
    return run.tokens / max(1, len(run.labels))


def token_ratio(run: Annotated, other: Annotated, seed: int = 0) -> Interval:
    """Return tokens per label of `run` divided by those of `other` on the same problems, with an interval."""
    problems = list(other.problems)
    counts = np.array(
        [[each.problems[p].tokens, _labels_of(each, p)] for each in (run, other) for p in problems], dtype=float
    )
    counts_RPC = counts.reshape(2, len(problems), 2)

    def ratio(indices: np.ndarray) -> float:
        (tokens, labels), (other_tokens, other_labels) = counts_RPC[:, indices].sum(axis=1)
        return tokens * other_labels / (labels * other_tokens) if labels and other_tokens else float("nan")

    return bootstrap(ratio, problems, seed)


def _labels_of(run: Annotated, problem_id: str) -> int:
    return sum(state[0] == problem_id for state in run.labels)


def errors(labels: Mapping[State, object], states: Sequence[State], truth: Mapping[State, float]) -> Results:
    """Return RMSE and bias of the labels of `states` against the fresh values, with intervals over problems."""
    error_K = np.array([labels[state].value - truth[state] for state in states])
    problems = [state[0] for state in states]
    rmse = bootstrap(lambda indices: float((error_K[indices] ** 2).mean() ** 0.5), problems, 0)
    bias = bootstrap(lambda indices: float(error_K[indices].mean()), problems, 0)
    return {"rmse": asdict(rmse), "bias": asdict(bias), "states": len(states)}


def rmse_difference(
    name: str, runs: Mapping[str, Annotated], chosen: Mapping[str, Sequence[State]], truth: Mapping[State, float]
) -> Interval:
    """Return RMSE(`name`) - RMSE(fixed), with an interval from resampling the problems of both jointly."""
    items = [(each, state) for each in (name, "fixed") for state in chosen[each]]
    squared_K = np.array([(runs[each].labels[state].value - truth[state]) ** 2 for each, state in items])
    own_K = np.array([each == name for each, _ in items])

    def difference(indices: np.ndarray) -> float:
        squared, own = squared_K[indices], own_K[indices]
        if own.all() or not own.any():
            return float("nan")
        return float(squared[own].mean() ** 0.5 - squared[~own].mean() ** 0.5)

    return bootstrap(difference, [state[0] for _, state in items], 0)
