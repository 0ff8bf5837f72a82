"""Compare flat Monte Carlo, OmegaPRM with fixed K, and mmprm's defaults at equal tokens: labels, errors and PRM F1.

All three annotate the same problems in the same order on the same engines; each keeps the problems that fit the budget.
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.real import labels, prm
from benchmarks.real.annotate import errors, tokens_per_label
from benchmarks.real.annotated import Annotated, annotate, fresh_values, sample_states
from benchmarks.real.flat import annotate_flat
from benchmarks.real.workspace import Results, Workspace
from mmprm.labels.parquet import write_parquet

METHODS = ("flat", "fixed", "adaptive")


def measure(workspace: Workspace) -> Results:
    """Annotate with each method, and compare the labels that the same number of tokens buys."""
    runs = within_budget(workspace)
    found: Results = {"budget_wanted": workspace.sizes.method_tokens}
    for name, run in runs.items():
        states = sample_states(run.labels, workspace.sizes.states // len(METHODS), seed=1)
        examples = labels.build(workspace, name, list(run.problems))
        found[name] = {
            "problems": len(run.problems),
            "tokens": run.tokens,
            "labels": len(run.labels),
            "tokens_per_label": tokens_per_label(run),
            "auc": asdict(labels.auc_interval(labels.judged(examples, workspace))),
            "error": errors(run.labels, states, fresh_values(workspace, states)),
        }
    return found


def measure_prms(workspace: Workspace) -> Results:
    """Train a PRM on the labels of each method, and compare first errors with those of the untrained PRM."""
    prm.untrained(workspace)
    plain = prm.first_errors(workspace, prm.UNTRAINED)
    found: Results = {}
    for name, run in within_budget(workspace).items():
        trained = f"{name}-equal"
        examples = labels.build(workspace, name, list(run.problems))
        write_parquet(labels.labels_path(workspace, trained), examples)
        prm.train(workspace, trained)
        judged = prm.first_errors(workspace, trained)
        found[f"{name}_prm"] = prm.f1_summary(judged)
        found[f"{name}_prm_minus_untrained"] = asdict(prm.f1_difference(judged, plain))
    return found


def within_budget(workspace: Workspace) -> dict[str, Annotated]:
    """Run each method, and keep its first problems up to the same total number of tokens."""
    runs = {name: annotate_flat(workspace) if name == "flat" else annotate(workspace, name) for name in METHODS}
    budget = min(workspace.sizes.method_tokens, *(each.tokens for each in runs.values()))
    return {name: run.within(budget) for name, run in runs.items()}
