"""Teach the built-in policy to judge, and compare thinking judges with a process reward model on the same solutions.

All of them learn from the same solutions of the built-in world, labeled with the truth:

prm     mmprm train: a process reward model, whose threshold is chosen on development solutions
sft     mmprm labels critiques and mmprm sft: critiques of the world's teacher that agree with the labels
rl      mmprm rl from sft, rewarded by the agreement of the verdicts with the labels

The judges are measured with 1 and with 8 chains per solution, and compared with a judge that guesses. A solution about
which a judge's verdicts are unknown counts as judged incorrectly. Every stage is a command in its own process; an
interrupted benchmark resumes with the missing stages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmprm.metrics import NO_ERROR, bootstrap, choose_threshold, first_below, processbench_f1
from mmprm.tiny.critiques import JUDGE

ROOT = Path(__file__).parent.parent
OFTEN = {"mistake_rate": 0.25, "hard_mistake_rate": 0.5}
"""Rates of mistakes in the training solutions. With the default rates, few critiques have an error, and the judge
learns to call every step correct."""
REWARD = "mmprm.critiques.rewards:verdict_agreement"
UNKNOWN = -2
"""First error of a solution that has no scores; no solution has this first error."""
PAIRS = (("sft_8", "sft_1"), ("rl_8", "rl_1"), ("rl_1", "sft_1"), ("rl_8", "sft_8"))
"""Pairs of methods of which the first should not be worse than the second."""


@dataclass(frozen=True, slots=True)
class ThinkingSizes:
    """Holds the numbers of solutions, epochs of SFT, training steps of RL, and problems per training step."""

    train: int
    dev: int
    test: int
    epochs: int
    rl_steps: int
    prompts: int


FULL = ThinkingSizes(train=8000, dev=300, test=600, epochs=4, rl_steps=60, prompts=32)
SMALL = ThinkingSizes(train=32, dev=24, test=24, epochs=1, rl_steps=1, prompts=2)


def thinking(folder: Path, sizes: ThinkingSizes) -> dict[str, Any]:
    """Train and measure all methods, as far as `folder` does not contain their results yet."""
    for split, count in (("train", sizes.train), ("dev", sizes.dev), ("test", sizes.test)):
        data = ["--output", folder / split, "--count", count, "--split", split]
        data += _sets(OFTEN if split == "train" else {})
        _once(folder / split / "summary.json", "tiny", "critiques", *data)
    prm, sft, rl = _trained(folder, sizes)
    threshold = _threshold(_scored(folder, "dev", "prm", {"prm": str(prm)}))
    found = {"prm": (_scored(folder, "test", "prm", {"prm": str(prm)}), threshold)}
    for name, policy in (("sft", sft), ("rl", rl)):
        for chains in (1, 8):
            judge = {
                **JUDGE,
                "engine": {"model": str(policy)},
                "chains": chains,
                "cache": str(folder / f"{name}.sqlite"),
            }
            scored = _scored(folder, "test", f"{name}_{chains}", {"backend": "judge", "judge": judge})
            found[f"{name}_{chains}"] = (scored, 0.5)
    return summarize(found)


def summarize(found: dict[str, tuple[Sequence[dict[str, Any]], float]]) -> dict[str, Any]:
    """Return F1 and tokens per solution of each method, the F1 of guessing, and the differences of PAIRS.

    `found` holds the rows and the threshold of each method.
    """
    claimed = {name: np.array([_claimed(row, limit) for row in rows]) for name, (rows, limit) in found.items()}
    rows = next(iter(found.values()))[0]
    truth, problems = np.array([row["label"] for row in rows]), [row["id"] for row in rows]

    def f1(name: str, indices: NDArray[np.intp]) -> float:
        return processbench_f1(claimed[name][indices], truth[indices]).f1

    metrics: dict[str, Any] = {}
    for name, (rows, _) in found.items():
        interval = bootstrap(lambda indices, name=name: f1(name, indices), problems, seed=0)
        tokens = sum(row.get("tokens") or 0 for row in rows) / len(rows)
        unknown = sum(row["scores"] is None for row in rows)
        metrics[name] = {"f1": _rounded(asdict(interval)), "tokens": round(tokens, 1), "unknown": unknown}
    metrics["chance"] = round(chance_f1([int(label) for label in truth]), 4)
    metrics["differences"] = {
        f"{one} - {other}": _rounded(
            asdict(bootstrap(lambda i, one=one, other=other: f1(one, i) - f1(other, i), problems, seed=0))
        )
        for one, other in PAIRS
    }
    return metrics


def chance_f1(labels: Sequence[int]) -> float:
    """Return the highest F1 of a judge that guesses: 2m / (1 + √m)², where m is the share of the most frequent first
    error among the solutions with an error.

    It names this step with probability 1 − q, and no error with probability q. With accuracies (1 − q)·m and q, the
    harmonic mean is highest at q = √m / (1 + √m).
    """
    errors = [label for label in labels if label != NO_ERROR]
    most_frequent = Counter(errors).most_common(1)[0][1] / len(errors)
    return 2 * most_frequent / (1 + most_frequent**0.5) ** 2


def _trained(folder: Path, sizes: ThinkingSizes) -> tuple[Path, Path, Path]:
    """Return the folders of the process reward model and of the policies after SFT and RL."""
    prm, sft, rl = folder / "prm", folder / "sft", folder / "rl"
    labels = {"labels": folder / "train" / "labels.parquet", "output": prm, "training.epochs": sizes.epochs}
    _once(prm / "prm", "train", "--config", ROOT / "configs" / "train" / "tiny.yaml", *_sets(labels))
    keys = {
        "data.path": folder / "train" / "kept.jsonl",
        "held_out": "null",
        "output": sft,
        "training.epochs": sizes.epochs,
        "training.batch_size": 16,
        "training.learning_rate": 1e-3,
    }
    _once(sft / "policy", "sft", "--config", ROOT / "configs" / "sft" / "tiny.yaml", *_sets(keys))
    keys = {
        "problems.path": folder / "train" / "problems.jsonl",
        "held_out": "null",
        "output": rl,
        "engine.model": sft / "policy",
        "sampling.max_tokens": JUDGE["sampling"]["max_tokens"],
        "rewards.accuracy_weight": 0,
        "rewards.functions": f'[{{path: "{REWARD}"}}]',
        "batch.prompts": sizes.prompts,
        "steps": sizes.rl_steps,
    }
    _once(rl / "policy", "rl", "--config", ROOT / "configs" / "rl" / "tiny.yaml", *_sets(keys))
    return prm / "prm", sft / "policy", rl / "policy"


def _scored(folder: Path, split: str, name: str, scorer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a split with the scores of a scorer."""
    file, config = folder / f"{split}-{name}.jsonl", folder / f"{split}-{name}.json"
    config.write_text(json.dumps({"scorer": scorer, "aggregator": "min", "columns": {"question": "problem"}}))
    _once(file, "score", folder / split / "solutions.jsonl", "--output", file, "--config", config)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _claimed(row: dict[str, Any], threshold: float) -> int:
    return UNKNOWN if row["scores"] is None else first_below(row["scores"], threshold)


def _threshold(rows: Sequence[dict[str, Any]]) -> float:
    assert {row["label"] == NO_ERROR for row in rows} == {True, False}, "development solutions of both kinds"
    return choose_threshold([row["scores"] for row in rows], [row["label"] for row in rows])[0]


def _sets(values: dict[str, Any]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def _once(result: Path, *command: Any) -> None:
    """Run an mmprm command in its own process, unless its result exists."""
    if not result.exists():
        print(f"mmprm {' '.join(map(str, command))}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "mmprm", *map(str, command)], check=True)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
