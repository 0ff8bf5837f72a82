"""Test packed training with DeepSpeed on one and two ranks: the steps equal those with one path per row."""

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

from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.prm.train import TrainConfig, train_prm
from mmprm.tiny.world import make_problems, solve
from mmprm.types import Counts, LabeledPath

pytestmark = pytest.mark.integration

EPOCHS = 3


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six paths for each of 12 problems, two of them held out; each prefix is labeled on the first path that has
    it.
    """
    rng, examples = random.Random(0), []
    for position, tiny in enumerate(make_problems(12, seed=0, split="train")):
        steps, labeled = solve(tiny), set()
        for depth in range(1, 7):
            path = steps[:depth] if depth % 2 else (*steps[: depth - 1], "12-3=9", "blue=4")
            prefixes = [path[:length] for length in range(1, len(path) + 1)]
            correct = (rng.randrange(9) for _ in prefixes)
            counts = tuple(
                None if prefix in labeled else Counts(r, 8 - r) for prefix, r in zip(prefixes, correct, strict=True)
            )
            labeled |= set(prefixes)
            split = "dev" if position >= 10 else "train"
            examples.append(LabeledExample(tiny.problem, LabeledPath(tiny.problem.id, path, counts, False), split))
    file = tmp_path_factory.mktemp("labels") / "labels.parquet"
    write_parquet(file, examples)
    return file


def settings(base: Path, labels: Path, output: Path, packing: str, **training: Any) -> dict[str, Any]:
    """Return settings with all samples in one step, so that the order of rows does not matter."""
    common = {"epochs": EPOCHS, "batch_size": 1000, "micro_batch_tokens": 300, "learning_rate": 3e-3}
    values = {"model": str(base), "labels": str(labels), "output": str(output), "packing": packing}
    target = {"weight": "precision"}
    return {**values, "target": target, "training": {**common, "precision": "fp32", "eval_every": 1, **training}}


def metrics(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["train", "eval"] * EPOCHS
    return [row[name] for row in rows for name in ("loss", "auc", "labels") if name in row]


@pytest.fixture(scope="module")
def separate(random_policy_folder: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("none") / "run"
    train_prm(TrainConfig(**settings(random_policy_folder, labels, output, "none")))
    return output


@pytest.mark.parametrize("packing", ["samples", "trees"])
def test_losses_and_weights_equal_those_of_separate_paths(
    separate: Path, packing: str, random_policy_folder: Path, labels: Path, tmp_path: Path
) -> None:
    summary = train_prm(TrainConfig(**settings(random_policy_folder, labels, tmp_path, packing)))
    assert summary.steps == EPOCHS
    assert metrics(tmp_path) == pytest.approx(metrics(separate), rel=1e-3)
    ours, theirs = (load_file(folder / "prm" / "model.safetensors") for folder in (tmp_path, separate))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-3)


def test_two_ranks_train_as_one(separate: Path, random_policy_folder: Path, labels: Path, tmp_path: Path) -> None:
    """Under ZeRO stages 0 and 3, both ranks run the same number of tree micro-batches."""
    runs = {f"zero{stage}": {"zero_stage": stage} for stage in (0, 3)}
    for name, training in runs.items():
        values = settings(random_policy_folder, labels, tmp_path / name, "trees", **training)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([{"config": str(tmp_path / f"{name}.yaml")} for name in runs]))
    command += [str(Path(__file__).with_name("train_worker.py")), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in runs:
        assert metrics(tmp_path / name) == pytest.approx(metrics(separate), rel=1e-3), name


def test_an_unsupported_model_trains_unpacked_with_a_warning(
    random_policy_folder: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tree masks do not support sliding windows, so each row holds one path, with a warning."""
    base = tmp_path / "base"
    shutil.copytree(random_policy_folder, base)
    config = json.loads((base / "config.json").read_text())
    config["text_config"] |= {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 64}
    config["text_config"]["use_sliding_window"] = True
    (base / "config.json").write_text(json.dumps(config))
    train_prm(TrainConfig(**settings(base, labels, tmp_path / "run", "trees")))
    assert "packing=trees does not work for" in capsys.readouterr().out
