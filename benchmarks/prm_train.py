"""Compare `mmprm train` with TRL's PRM trainer on a small text-only model and the labels of a demo run.

Rates count distinct labels. Both trainers use the same paths, but TRL's export repeats labels that paths share. Both
train on hard labels in float32 from the same weights, with the same limit on tokens at once. TRL batches rows of
similar length, padded to the longest; for mmprm, the fastest of its packings counts. TRL is installed in its own folder
(`make trl`) and runs in a separate process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mmprm.convert.export import export_prm
from mmprm.data.marks import IMAGE
from mmprm.labels.export import ExportConfig, export_labels
from mmprm.labels.parquet import LabeledExample, read_parquet, write_parquet
from mmprm.prm.info import PrmTokens, read_info
from mmprm.prm.losses import soft_cross_entropy_sum
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.prm.scoring_model import load_scoring_model
from mmprm.prm.train import TrainConfig, train_prm
from mmprm.tiny.model import weights_path
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.ranks import join_ranks
from mmprm.types import Problem, Solution

ROOT = Path(__file__).parent.parent
TRL = ROOT / ".venv-trl"
PACKINGS = ("none", "samples", "trees")
TOKENS_AT_ONCE = 8192
BATCH = 512
COMPARED_STEPS, COMPARED_BATCH, COMPARED_RATE = 20, 16, 1e-3


def train_vs_trl(labels: Path, rounds: int = 3) -> dict[str, Any]:
    """Benchmark mmprm's and TRL's PRM trainers; return ratio, spread, loss difference, packing and speeds."""
    with tempfile.TemporaryDirectory(prefix="mmprm-bench-") as name:
        folder = Path(name)
        examples = [_without_images(example) for example in read_parquet(str(labels))]
        write_parquet(folder / "labels.parquet", [replace(example, split="train") for example in examples])
        export = ExportConfig(
            labels=str(folder / "labels.parquet"), output=str(folder / "export"), format="trl", dev=0, test=0
        )
        export_labels(export)
        _make_models(folder)
        speeds: dict[str, list[float]] = {"trl": [], **{packing: [] for packing in PACKINGS}}
        for _ in range(rounds):
            speeds["trl"].append(_trl_labels_per_second(folder))
            for packing in PACKINGS:
                speeds[packing].append(_our_labels_per_second(folder, packing))
        best = max(PACKINGS, key=lambda packing: statistics.median(speeds[packing]))
        ratios = [ours / theirs for ours, theirs in zip(speeds[best], speeds["trl"], strict=True)]
        return {
            "ratio": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "max_loss_diff": _largest_loss_difference(folder),
            "packing": best,
            "labels_per_second": {name: statistics.median(found) for name, found in speeds.items()},
        }


def _without_images(example: LabeledExample) -> LabeledExample:
    problem = example.problem
    question = problem.question.replace(IMAGE, "").strip()
    # Problems may differ only in their image, and equal texts would be dropped as near-duplicates.
    return replace(example, problem=Problem(problem.id, f"{problem.id} {question}", problem.answer))


def _make_models(folder: Path) -> None:
    """Write a small language model to base/, its PRM to prm/, and the PRM in TRL's format to trl/."""
    known = AutoTokenizer.from_pretrained(weights_path())
    tokenizer = PreTrainedTokenizerFast(  # without the image processor
        tokenizer_object=known.backend_tokenizer, eos_token=known.eos_token, pad_token=known.pad_token
    )
    tokenizer.chat_template = known.chat_template
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer) + 8,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    save_prm(folder / "prm", initialize_prm(str(folder / "base"), PrmTokens(), add_missing_tokens=True))
    export_prm(folder / "prm", folder / "trl", "trl")


def _our_labels_per_second(folder: Path, packing: str) -> float:
    with tempfile.TemporaryDirectory() as output:
        training = {"batch_size": BATCH, "micro_batch_tokens": TOKENS_AT_ONCE, "precision": "fp32"}
        values = {"model": str(folder / "base"), "labels": str(folder / "labels.parquet"), "output": output}
        values |= {"add_missing_tokens": True}
        train_prm(TrainConfig(**values, packing=packing, target={"kind": "hard"}, training=training))
        lines = (Path(output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train"][1:]
    return sum(row["terms_per_second"] * row["seconds"] for row in steps) / sum(row["seconds"] for row in steps)


def _trl_labels_per_second(folder: Path) -> float:
    longest = max(len(ids) for ids, _ in _trl_rows(folder))
    batch = TOKENS_AT_ONCE // longest
    steps = len(list(_rows(folder))) // BATCH
    found = _trl(folder, batch, BATCH // batch, steps, 1e-4, "group_by_length")
    rows = batch * (BATCH // batch) * (steps - 1)
    return _distinct_labels(folder) / len(found["labels"]) * rows / sum(found["seconds"][1:steps])


def _distinct_labels(folder: Path) -> int:
    """Count the distinct labels of the exported paths, which repeat the labels of shared prefixes."""
    examples = read_parquet(str(folder / "labels.parquet"))
    return sum(counts is not None for example in examples for counts in example.path.counts)


def _largest_loss_difference(folder: Path) -> float:
    """Return the largest loss difference between TRL and mmprm over COMPARED_STEPS steps.

    Both runs start from the same weights, use the same batches and train a two-class head.
    """
    theirs = _trl(folder, COMPARED_BATCH, 1, COMPARED_STEPS, COMPARED_RATE, "sequential")["losses"]
    judge, form = load_scoring_model(str(folder / "trl"), read_info(folder / "trl"))
    training = TrainingConfig(
        learning_rate=COMPARED_RATE, final_learning_rate=1.0, warmup=0.0, precision="fp32", betas=(0.9, 0.95)
    )
    engine = Engine(judge.train(), training, COMPARED_STEPS, join_ranks())
    rows = list(_rows(folder))
    differences = []
    for step in range(COMPARED_STEPS):
        batch = rows[step * COMPARED_BATCH : (step + 1) * COMPARED_BATCH]
        inputs, read_BT = form.encode([solution for solution, _ in batch])
        target_M = torch.tensor([label for _, labels in batch for label in labels], dtype=torch.float32)

        def loss(model: nn.Module, inputs: Any = inputs, read: Tensor = read_BT, target: Tensor = target_M) -> Tensor:
            log_odds_M = model(read, **inputs)
            return soft_cross_entropy_sum(torch.stack([log_odds_M, torch.zeros_like(log_odds_M)], dim=1), target)

        ours, _ = engine.step([loss], len(target_M))
        differences.append(abs(ours - theirs[step]))
    return max(differences)


def _rows(folder: Path) -> Iterator[tuple[Solution, Sequence[float]]]:
    """Yield the exported rows as solutions with their labels."""
    for line in (folder / "export" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Solution(Problem("", row["prompt"], ""), tuple(row["completions"])), [float(x) for x in row["labels"]]


def _trl_rows(folder: Path) -> Iterator[tuple[Sequence[int], Sequence[float]]]:
    _, form = load_scoring_model(str(folder / "trl"), read_info(folder / "trl"))
    for solution, labels in _rows(folder):
        yield form.mark(solution).ids, labels


def _trl(folder: Path, batch: int, accumulate: int, steps: int, rate: float, order: str) -> dict[str, Any]:
    separator = read_info(folder / "trl").tokens.marker
    command = [sys.executable, str(Path(__file__).parent / "trl_prm.py"), str(folder / "export" / "train.jsonl")]
    command += [str(folder / "trl"), separator, *map(str, (batch, accumulate, steps, rate, order))]
    environment = {
        name: value for name, value in os.environ.items() if name != "LOCAL_RANK"
    }  # LOCAL_RANK was set by an engine in this process
    environment |= {"PYTHONPATH": str(TRL), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(train_vs_trl(ROOT / "runs" / "demo" / "labels.parquet"), indent=2))
