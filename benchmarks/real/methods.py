"""Compare flat Monte Carlo, OmegaPRM with fixed K, and mmprm's defaults at equal tokens: labels, errors and PRM F1.

All three annotate the same problems in the same order on the same engines; each keeps the problems that fit its budget.
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
    """Annotate with each method within the same number of tokens; train and evaluate a PRM on the labels of each."""
    runs = {name: run(workspace, name) for name in METHODS}
    budget = min(workspace.sizes.method_tokens, *(sum(each.tokens.values()) for each in runs.values()))
    results: Results = {"budget": budget, "budget_wanted": workspace.sizes.method_tokens}
    prm.untrained(workspace)
    base = prm.first_errors(workspace, "untrained")
    for name in METHODS:
        results[name] = method(workspace, name, runs[name].within(budget), base)
    return results


def run(workspace: Workspace, name: str) -> Annotated:
    return annotate_flat(workspace) if name == "flat" else annotate(workspace, name)


def method(workspace: Workspace, name: str, kept: Annotated, base: tuple[prm.Judged, float]) -> Results:
    """Measure one method on the problems that its budget covers."""
    states = sample_states(kept.labels, workspace.sizes.states // len(METHODS), seed=1)
    examples = labels.build(workspace, name, list(kept.tokens))
    trained = f"{name}-equal"
    write_parquet(labels.labels_path(workspace, trained), examples)
    prm.train(workspace, trained)
    found = prm.first_errors(workspace, trained)
    return {
        "problems": len(kept.tokens),
        "tokens": sum(kept.tokens.values()),
        "labels": len(kept.labels),
        "tokens_per_label": tokens_per_label(kept),
        "error": errors(kept.labels, states, fresh_values(workspace, states)),
        "auc": asdict(labels.auc_interval(labels.judged(examples, workspace))),
        "prm": prm.f1_summary(*found),
        "f1_minus_untrained": asdict(prm.f1_difference(found, base)),
    }
