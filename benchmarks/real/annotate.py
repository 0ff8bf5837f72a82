"""Compare adaptive rollouts with a fixed number per state: tokens per distinct label, and errors of the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.real.annotated import Annotated, State, annotate, fresh_values, sample_states
from benchmarks.real.workspace import Results, Workspace
from mmprm.metrics import Interval, bootstrap

NAMES = ("adaptive", "fixed")


def measure(workspace: Workspace) -> Results:
    """Run both campaigns and compare their costs. Finished parts are reused."""
    runs = {name: annotate(workspace, name) for name in NAMES}
    ratio = token_ratio(runs["adaptive"], runs["fixed"])
    return {
        "token_ratio": ratio.value,
        "token_ratio_interval": [ratio.low, ratio.high],
        "tokens_per_label": {name: tokens_per_label(run) for name, run in runs.items()},
        "rollouts_per_label": {name: rollouts_per_label(run) for name, run in runs.items()},
        "labels": {name: len(run.labels) for name, run in runs.items()},
        "tokens": {name: sum(run.tokens.values()) for name, run in runs.items()},
        "engine_seconds": {name: run.seconds for name, run in runs.items()},
        "ended": {name: run.summary.ended for name, run in runs.items()},
    }


def measure_errors(workspace: Workspace) -> Results:
    """Compare the labels of both campaigns with the values from fresh rollouts."""
    runs = {name: annotate(workspace, name) for name in NAMES}
    chosen = {name: sample_states(run.labels, workspace.sizes.states // 2, seed=0) for name, run in runs.items()}
    truth = fresh_values(workspace, [state for states in chosen.values() for state in states])
    return {
        "states": sum(map(len, chosen.values())),
        "fresh_rollouts": workspace.sizes.fresh,
        "errors": {name: errors(runs[name].labels, chosen[name], truth) for name in runs},
        "rmse_difference": asdict(rmse_difference(runs, chosen, truth)),
    }


def tokens_per_label(run: Annotated) -> float:
    return sum(run.tokens.values()) / max(1, len(run.labels))


def rollouts_per_label(run: Annotated) -> float:
    return run.summary.rollouts / max(1, len(run.labels))


def token_ratio(run: Annotated, other: Annotated, seed: int = 0) -> Interval:
    """Return tokens per label of `run` divided by those of `other`, with an interval over the common problems."""
    problems = sorted(run.tokens.keys() & other.tokens.keys())
    counts = np.array([[each.tokens[p], _labels_of(each, p)] for each in (run, other) for p in problems], dtype=float)
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
    runs: Mapping[str, Annotated], chosen: Mapping[str, Sequence[State]], truth: Mapping[State, float]
) -> Interval:
    """Return RMSE(adaptive) - RMSE(fixed), with an interval from resampling the problems of both jointly."""
    items = [(name, state) for name in ("adaptive", "fixed") for state in chosen[name]]
    squared_K = np.array([(runs[name].labels[state].value - truth[state]) ** 2 for name, state in items])
    adaptive_K = np.array([name == "adaptive" for name, _ in items])

    def difference(indices: np.ndarray) -> float:
        squared, adaptive = squared_K[indices], adaptive_K[indices]
        if adaptive.all() or not adaptive.any():
            return float("nan")
        return float(squared[adaptive].mean() ** 0.5 - squared[~adaptive].mean() ** 0.5)

    return bootstrap(difference, [state[0] for _, state in items], 0)
