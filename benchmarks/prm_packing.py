"""Measure the speedup from sharing prefixes, on the trees of a demo run, for benchmarks/prm.py.

tree_packing    distinct labels trained per second, all paths of a tree as one sequence relative to one path per row
shared_scoring  steps scored per second, 16 solutions of a problem as one tree relative to one solution per row

Both sides of a ratio use the same model, data, token budget and machine, run alternately, and count each label once.
The first step of a run is excluded, because it includes one-time setup.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprm.prm.train import TrainConfig, train_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.transformers_scorer import TransformersScorer
from mmprm.tiny.model import weights_path
from mmprm.types import Solution

ROUNDS = 3


def tree_packing_ratio(
    labels: Path, micro_batch_tokens: int = 8192, batch_size: int = 512, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Measure the speedup of tree packing, with the demo's targets and with all labels, even those after an error.

    Each label counts once. `correct_solutions` of the demo is not used, because it repeats the labels of shared steps.
    """
    demo = {"error_value": 0.15, "after_error": "mask"}
    speeds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for kind, target in (("demo", demo), ("all_labels", {})):
            for packing in ("none", "trees"):
                speed = _labels_per_second(labels, packing, target, micro_batch_tokens, batch_size)
                speeds.setdefault(kind, {}).setdefault(packing, []).append(speed)
    results = {kind: _result(found, "trees", "none") for kind, found in speeds.items()}
    return {**results["demo"], "all_labels": results["all_labels"]}


def shared_scoring_ratio(prm: Path, solutions: Sequence[Sequence[Solution]], rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure the speedup of scoring with shared prefixes. `solutions` contains one group per problem."""
    flat = [solution for group in solutions for solution in group]
    scorers = {
        name: TransformersScorer(ScorerConfig(prm=str(prm), share_prefixes=name == "shared"))
        for name in ("separate", "shared")
    }
    speeds: dict[str, list[float]] = {name: [] for name in scorers}
    for scorer in scorers.values():
        scorer.score(flat[:64])
    for _ in range(rounds):
        for name, scorer in scorers.items():
            started = time.perf_counter()
            scores = scorer.score(flat)
            speeds[name].append(sum(len(each.scores) for each in scores) / (time.perf_counter() - started))
    return _result(speeds, "shared", "separate")


def _labels_per_second(
    labels: Path, packing: str, target: dict[str, Any], micro_batch_tokens: int, batch_size: int
) -> float:
    """Train with the demo's recipe, and return the number of labels trained per second.

    Batches are larger than the demo's 32 paths, because small ones would mostly measure the optimizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        training = {"batch_size": batch_size, "micro_batch_tokens": micro_batch_tokens, "precision": "fp32"}
        values = {"model": str(weights_path()), "labels": str(labels), "output": folder, "frozen": ("visual",)}
        train_prm(TrainConfig(**values, packing=packing, target=target, training=training))
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train"][1:]
    return sum(row["terms_per_second"] * row["seconds"] for row in steps) / sum(row["seconds"] for row in steps)


def _result(speeds: dict[str, list[float]], ours: str, other: str) -> dict[str, Any]:
    ratios = [fast / slow for fast, slow in zip(speeds[ours], speeds[other], strict=True)]
    return {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)], "per_second": speeds}
