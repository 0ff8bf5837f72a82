"""DeepSpeed for real: one rank and two, ZeRO stages, micro-batch splits, and an interrupted run."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmprm.errors import CheckpointError, DataError
from mmprm.labels.parquet import LabelledExample, write_parquet
from mmprm.prm.model import load_prm
from mmprm.prm.train import TrainConfig, train_prm
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Counts, LabelledPath, Solution

pytestmark = pytest.mark.integration

STEPS = 6
TRAINING = {
    "epochs": 2,
    "batch_size": 8,
    "micro_batch_tokens": 400,
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "precision": "fp32",
    "seed": 5,
}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training paths and 6 held out, of different lengths, about a third of the steps without label."""
    rng = random.Random(0)
    examples = []
    for place, tiny in enumerate(make_problems(30, seed=0, split="train")):
        steps = solve(tiny, rng, Mistakes(easy=0.2, hard=0.2))
        right = (rng.randrange(17) for _ in steps)
        counts = tuple(None if rng.random() < 0.3 else Counts(r, 16 - r) for r in right)
        path = LabelledPath(tiny.problem.id, steps, (Counts(3, 13), *counts[1:]), False)
        examples.append(LabelledExample(tiny.problem, path, "dev" if place >= 24 else "train"))
    file = tmp_path_factory.mktemp("labels") / "labels.parquet"
    write_parquet(file, examples)
    return file


def settings(base: Path, labels: Path, output: Path, **training: Any) -> dict[str, Any]:
    frozen = [r"^model\.visual\.(?!merger)"]
    values = {"base": str(base), "labels": str(labels), "output": str(output), "frozen": frozen}
    return {**values, "training": {**TRAINING, **training}}


def losses(output: Path, kind: str = "train", name: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, STEPS + 1))
    return [row[name] for row in rows if row["kind"] == kind]


def assert_same_model(left: Path, right: Path, atol: float) -> None:
    tensors = [load_file(folder / "prm" / "model.safetensors") for folder in (left, right)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name], rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def one_rank(random_policy_folder: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one_rank") / "run"
    # ZeRO-1 on one rank shards nothing, but DeepSpeed tells the gradient norm.
    config = TrainConfig(**settings(random_policy_folder, labels, output, zero_stage=1, save_every=3, eval_every=3))
    summary = train_prm(config)
    assert (summary.steps, summary.samples, summary.too_long) == (STEPS, 24, 0)
    assert summary.evaluation.keys() == {"loss", "auc", "labels"}
    return output


def test_it_learns_and_leaves_what_is_promised(one_rank: Path, random_policy_folder: Path) -> None:
    assert losses(one_rank)[-1] < losses(one_rank)[0]
    assert len(losses(one_rank, "eval")) == 2
    assert [path.name for path in sorted((one_rank / "checkpoints").iterdir())] == ["step-00000003", "step-00000006"]
    assert list((one_rank / "tensorboard").iterdir())
    prm = load_prm(one_rank / "prm")
    assert (prm.info.labels["kind"], prm.info.labels["file"]) == ("soft", "labels.parquet")
    tiny = make_problems(1, seed=1, split="test")[0]
    assert prm.model(**prm.renderer.encode([Solution(tiny.problem, solve(tiny))])).isfinite().all()
    before, after = load_file(random_policy_folder / "model.safetensors"), load_file(one_rank / "prm/model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if "visual" in name} == {name for name in before if "visual.merger" in name}


def test_interrupted_equals_uninterrupted(
    one_rank: Path, random_policy_folder: Path, labels: Path, tmp_path: Path
) -> None:
    """The later half again, from the checkpoint in the middle of the last epoch's order: the same bits."""
    output = tmp_path / "run"
    shutil.copytree(one_rank, output, ignore=shutil.ignore_patterns("prm", "step-00000006"))
    values = settings(random_policy_folder, labels, output, zero_stage=1, save_every=3, eval_every=3)
    train_prm(TrainConfig(**values))
    assert losses(output) == losses(one_rank)
    assert_same_model(output, one_rank, atol=0)
    values["training"]["learning_rate"] = 1e-3
    with pytest.raises(CheckpointError, match=r"another learning_rate \(0.003 there, 0.001 here\)"):
        train_prm(TrainConfig(**values))


def test_micro_batches_change_nothing(one_rank: Path, random_policy_folder: Path, labels: Path, tmp_path: Path) -> None:
    train_prm(TrainConfig(**settings(random_policy_folder, labels, tmp_path, micro_batch_tokens=100_000)))
    assert losses(tmp_path) == pytest.approx(losses(one_rank), rel=1e-4)
    assert_same_model(tmp_path, one_rank, atol=2e-3)


def test_two_ranks_equal_one(one_rank: Path, random_policy_folder: Path, labels: Path, tmp_path: Path) -> None:
    """Losses, gradient norms (which Adam would hide a wrong scale of) and weights, under ZeRO 0, 2 and 3."""
    runs = {
        "zero0": {"zero_stage": 0},
        "zero2": {"zero_stage": 2, "save_every": 3},
        "zero3": {"zero_stage": 3},
        "bf16": {"zero_stage": 2, "precision": "bf16"},
    }
    for name, training in runs.items():
        values = settings(random_policy_folder, labels, tmp_path / name, **training)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("train_worker.py")), *(str(tmp_path / f"{name}.yaml") for name in runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in ("zero0", "zero2", "zero3"):
        assert losses(tmp_path / name) == pytest.approx(losses(one_rank), rel=1e-3), name
        assert losses(tmp_path / name, "eval") == pytest.approx(losses(one_rank, "eval")[-1:], rel=1e-3), name
        assert_same_model(tmp_path / name, one_rank, atol=2e-3)
    norms = losses(one_rank, name="gradient_norm")
    assert losses(tmp_path / "zero2", name="gradient_norm") == pytest.approx(norms, rel=1e-2)
    assert losses(tmp_path / "zero3", name="gradient_norm") == pytest.approx(norms, rel=1e-2)
    assert losses(tmp_path / "bf16") == pytest.approx(losses(one_rank), rel=0.05)
    assert load_file(tmp_path / "bf16" / "prm" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_nothing_to_train_on(random_policy_folder: Path, labels: Path, tmp_path: Path) -> None:
    values = settings(random_policy_folder, labels, tmp_path)
    with pytest.raises(DataError, match="no labelled path of at most 10 tokens"):
        train_prm(TrainConfig(**values, max_length=10))
