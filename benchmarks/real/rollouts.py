"""Count the rollouts that cannot be used: those that cannot be split, have no verdict, or were truncated."""

from __future__ import annotations

import json
from collections.abc import Iterable

from benchmarks.real.problems import FORMS
from benchmarks.real.workspace import MAX_TOKENS, Results, Workspace
from mmprm.metrics import wilson
from mmprm.trees.database import STORE_NAME
from mmprm.trees.store import Store

Rollouts = Iterable[tuple[str | None, bool, int]]
"""List of triples (reason why the text cannot be split, whether the verdict is unknown, number of tokens)."""


def measure(workspace: Workspace) -> Results:
    """Measure the shares in the campaign, and in the solutions of both step formats that the SFT part sampled."""
    found = {form: shares(_sampled(workspace, form)) for form in FORMS}
    whole = shares(_searched(workspace))
    return {**{key: whole[key]["share"] for key in ("unsplittable", "unknown", "truncated")}, "all": whole, **found}


def shares(rollouts: Rollouts) -> Results:
    """Return the share of each kind with its Wilson interval."""
    listed = list(rollouts)
    kinds = {
        "unsplittable": sum(unsplit is not None for unsplit, _, _ in listed),
        "unknown": sum(unknown for _, unknown, _ in listed),
        "truncated": sum(tokens >= MAX_TOKENS for _, _, tokens in listed),
    }
    found = {}
    for name, count in kinds.items():
        interval = wilson(count, len(listed))
        assert interval is not None, "there must be rollouts"
        found[name] = {"share": interval.value, "low": interval.low, "high": interval.high}
    return found | {"rollouts": len(listed)}


def _searched(workspace: Workspace) -> Rollouts:
    store = Store.read(workspace.folder / "adaptive" / STORE_NAME)
    for problem_id in store.ids():
        for batch in store.batches(problem_id):
            for rollout in batch.rollouts:
                yield rollout.unsplit, rollout.verdict.name == "UNKNOWN", rollout.token_count
    store.close()


def _sampled(workspace: Workspace, form: str) -> Rollouts:
    for line in (workspace.folder / f"pass-{form}" / "candidates.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["unsplit"], row["verdict"] == "unknown", row["tokens"]
