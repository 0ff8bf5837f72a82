"""Train the policy with `mmprm rl`, with and without process rewards, and compare both at equal tokens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real import prm
from benchmarks.real.workspace import Results, Workspace, read_json, run_command, sampling_sets
from mmprm.data.rows import read_file
from mmprm.metrics import bootstrap_means
from mmprm.selection.candidates import read_groups
from mmprm.types import Verdict

ARMS = ("outcome", "process")


def train_outcome(workspace: Workspace) -> Results:
    """Run the arm with outcome rewards only."""
    return {"outcome_steps": len(train(workspace, "outcome"))}


def train_process(workspace: Workspace) -> Results:
    """Run the arm with outcome and process rewards."""
    return {"process_steps": len(train(workspace, "process"))}


def measure(workspace: Workspace) -> Results:
    """Sample the held-out problems with the policy before and after each arm, and compare."""
    rows = {arm: train(workspace, arm) for arm in ARMS}
    accuracy = {"before": _accuracies(workspace, "before", workspace.policy)}
    accuracy |= {arm: _accuracies(workspace, arm, workspace.folder / f"rl-{arm}" / "policy") for arm in ARMS}
    names = ("before", *ARMS)
    intervals = bootstrap_means(
        [
            *(accuracy[name] for name in names),
            accuracy["outcome"] - accuracy["before"],
            accuracy["process"] - accuracy["before"],
            accuracy["process"] - accuracy["outcome"],
        ],
        0,
    )
    keys = (*names, "outcome_minus_before", "process_minus_before", "process_minus_outcome")
    return {
        **{key: asdict(interval) for key, interval in zip(keys, intervals, strict=True)},
        "generated_tokens": {arm: sum(row.get("tokens", 0) for row in rows[arm]) for arm in ARMS},
        "steps": workspace.sizes.rl_steps,
        "seconds_per_step": {arm: float(np.median([row["seconds"] for row in rows[arm]])) for arm in ARMS},
        "problems": len(accuracy["before"]),
    }


def train(workspace: Workspace, arm: str) -> list[dict[str, Any]]:
    """Run or resume the training of one arm; return the metrics of its steps."""
    output = workspace.folder / f"rl-{arm}"
    if not (output / "policy").exists():
        sets = sampling_sets(workspace)
        sets |= {
            "output": output,
            "problems.path": workspace.problems("rl"),
            "held_out": None,
            "steps": workspace.sizes.rl_steps,
            "batch.prompts": workspace.sizes.rl_prompts,
        }
        if arm == "process":
            sets |= {"process.scorer.prm": prm.prm_folder(workspace, "adaptive")}
        run_command("rl", "rl.yaml", sets)
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == "train"]


def _accuracies(workspace: Workspace, name: str, policy: Path) -> np.ndarray:
    """Sample the held-out problems with a policy; return each problem's share of correct solutions."""
    output = workspace.folder / f"rl-eval-{name}"
    if not read_json(output / "summary.json"):
        sets = sampling_sets(workspace, policy)
        sets |= {"problems.path": workspace.problems("rl-held-out"), "output": output}
        run_command("rerank", None, sets | {"samples": workspace.sizes.pass_samples})
    groups = read_groups(read_file(output / "candidates.jsonl"))
    shares = {g.problem.id: np.mean([c.verdict is Verdict.CORRECT for c in g.candidates]) for g in groups}
    return np.array([shares[problem_id] for problem_id in sorted(shares)])
