"""Test training with DeepSpeed: one and two ranks, ZeRO stages, adapters, micro-batch splits, and interrupted runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmprm.errors import CheckpointError, DataError
from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.prm import train
from mmprm.prm.info import read_info, write_info
from mmprm.prm.model import load_prm
from mmprm.prm.train import TrainConfig, train_prm
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Counts, LabeledPath, Solution
from tests.backbones import write_backbone

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
    """Write 24 training and 6 held-out paths of different lengths; about a third of the steps have no label."""
    rng = random.Random(0)
    examples = []
    for position, tiny in enumerate(make_problems(30, seed=0, split="train")):
        steps = solve(tiny, rng, Mistakes(easy=0.2, hard=0.2))
        correct = (rng.randrange(17) for _ in steps)
        counts = tuple(None if rng.random() < 0.3 else Counts(r, 16 - r) for r in correct)
        path = LabeledPath(tiny.problem.id, steps, (Counts(3, 13), *counts[1:]), False)
        examples.append(LabeledExample(tiny.problem, path, "dev" if position >= 24 else "train"))
    file = tmp_path_factory.mktemp("labels") / "labels.parquet"
    write_parquet(file, examples)
    return file


def settings(base: Path, labels: Path, output: Path, **training: Any) -> dict[str, Any]:
    frozen = [r"^model\.visual\.(?!merger)"]
    values = {"model": str(base), "labels": str(labels), "output": str(output), "frozen": frozen}
    return {**values, "training": {**TRAINING, **training}}


def run_jobs(
    folder: Path, configs: dict[str, dict[str, Any]], jobs: list[dict[str, Any]], ranks: int
) -> subprocess.CompletedProcess[str]:
    """Run jobs of train_worker.py with the named configurations; one rank runs without torchrun."""
    for name, values in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    file = folder / "jobs.json"
    file.write_text(json.dumps([{**job, "config": str(folder / f"{job['config']}.yaml")} for job in jobs]))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, str(Path(__file__).with_name("train_worker.py")), str(file)]
    # set by engines in this process
    alone = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=alone)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


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
    # ZeRO-1 shards nothing on one rank, but DeepSpeed then reports the gradient norm.
    config = TrainConfig(**settings(random_policy_folder, labels, output, zero_stage=1, save_every=3, eval_every=3))
    summary = train_prm(config)
    assert (summary.steps, summary.samples, summary.too_long) == (STEPS, 24, 0)
    assert summary.evaluation.keys() == {"loss", "auc", "labels"}
    return output


def test_a_run_lowers_the_loss_and_writes_its_files(one_rank: Path, random_policy_folder: Path) -> None:
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
    """The newest checkpoint is truncated, so the run repeats its second half from the one before and gives identical
    bits.
    """
    output = tmp_path / "run"
    shutil.copytree(one_rank, output, ignore=shutil.ignore_patterns("prm"))
    largest = max((output / "checkpoints/step-00000006").rglob("*.pt"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    values = settings(random_policy_folder, labels, output, zero_stage=1, save_every=3, eval_every=3)
    train_prm(TrainConfig(**values))
    assert losses(output) == losses(one_rank)
    assert_same_model(output, one_rank, atol=0)
    values["training"]["learning_rate"] = 1e-3
    with pytest.raises(CheckpointError, match=r"different settings: learning_rate \(stored 0.003, asked 0.001\)"):
        train_prm(TrainConfig(**values))


def test_a_finished_run_keeps_later_changes_to_prm_json(
    one_rank: Path, random_policy_folder: Path, labels: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(one_rank, output)
    config = TrainConfig(**settings(random_policy_folder, labels, output, zero_stage=1, save_every=3, eval_every=3))
    chosen = read_info(output / "prm").model_copy(update={"aggregator": "min", "threshold": 0.4})
    write_info(output / "prm", chosen)
    train_prm(config)
    assert read_info(output / "prm") == chosen
    assert_same_model(output, one_rank, atol=0)
    shutil.rmtree(output / "checkpoints/step-00000006")  # the last steps are repeated, which gives another model
    train_prm(config)
    assert read_info(output / "prm").aggregator is None


def test_a_run_stopped_by_sigterm_resumes(
    one_rank: Path, random_policy_folder: Path, labels: Path, tmp_path: Path
) -> None:
    values = settings(random_policy_folder, labels, tmp_path / "run", zero_stage=1, eval_every=3)
    done = run_jobs(tmp_path, {"run": values}, [{"config": "run", "sigterm": 4}], ranks=1)
    assert "SIGTERM; saved after step 4 of 6. Run the same command to resume" in done.stdout
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]
    assert not (tmp_path / "run/prm").exists()
    train_prm(TrainConfig(**values))
    assert losses(tmp_path / "run") == losses(one_rank)
    assert_same_model(tmp_path / "run", one_rank, atol=0)


def test_sigterm_while_the_model_is_written(
    random_policy_folder: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint contains the final model, so the run finishes writing it."""
    save_prm = train.save_prm

    def asked(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save_prm(*arguments)

    monkeypatch.setattr(train, "save_prm", asked)
    train_prm(TrainConfig(**settings(random_policy_folder, labels, tmp_path, epochs=1)))
    assert load_prm(tmp_path / "prm").info.labels["file"] == "labels.parquet"


def test_micro_batches_change_nothing(one_rank: Path, random_policy_folder: Path, labels: Path, tmp_path: Path) -> None:
    train_prm(TrainConfig(**settings(random_policy_folder, labels, tmp_path, micro_batch_tokens=100_000)))
    assert losses(tmp_path) == pytest.approx(losses(one_rank), rel=1e-4)
    assert_same_model(tmp_path, one_rank, atol=2e-3)


LORA = {"lora": {"rank": 4}}


@pytest.fixture(scope="module")
def lora_rank(random_policy_folder: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lora") / "run"
    train_prm(TrainConfig(**settings(random_policy_folder, labels, output, zero_stage=1, save_every=3), **LORA))
    return output


def test_adapters_are_saved_as_a_plain_model_and_resume(
    lora_rank: Path, random_policy_folder: Path, labels: Path, tmp_path: Path
) -> None:
    """Checkpoints contain only trained weights; frozen ones are loaded from the base model."""
    before, after = (load_file(folder / "model.safetensors") for folder in (random_policy_folder, lora_rank / "prm"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in moved} == {
        *("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert losses(lora_rank)[-1] < losses(lora_rank)[0]
    shutil.copytree(lora_rank, tmp_path / "run", ignore=shutil.ignore_patterns("prm", "step-00000006"))
    states = torch.load(next((lora_rank / "checkpoints").rglob("mp_rank_00_model_states.pt")), weights_only=False)
    assert not any("base_layer.weight" in name for name in states["module"])
    train_prm(
        TrainConfig(**settings(random_policy_folder, labels, tmp_path / "run", zero_stage=1, save_every=3), **LORA)
    )
    assert losses(tmp_path / "run") == pytest.approx(losses(lora_rank), rel=FROZEN_VISION)
    assert_same_model(tmp_path / "run", lora_rank, atol=FROZEN_VISION)


BF16 = [f"bf16_{stage}" for stage in range(4)]
FROZEN_VISION = 1e-6
"""Tolerance of a resumed run with a frozen vision tower, which computes image features in other batches than before."""
STOPPED = {"stopped2": "zero2", "stopped3": "zero3", "lora_stopped": "lora3"}
"""Runs that receive SIGTERM and are resumed, with the undisturbed run of the same settings."""
TWO_RANKS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero2": {"zero_stage": 2, "save_every": 3},
    "zero3": {"zero_stage": 3},
    **{name: {"zero_stage": stage, "precision": "bf16"} for stage, name in enumerate(BF16)},
    "offload2": {"zero_stage": 2, "offload": "optimizer"},
    "offload3": {"zero_stage": 3, "offload": "all"},
    "stopped2": {"zero_stage": 2},
    "stopped3": {"zero_stage": 3},
    "nan0": {"zero_stage": 0},
    "nan3": {"zero_stage": 3},
    "lora2": {"zero_stage": 2},
    "lora3": {"zero_stage": 3},
    "lora_stopped": {"zero_stage": 3},
    "lora_bf16": {"zero_stage": 3, "precision": "bf16", "offload": "all"},
    "parts": {"zero_stage": 3},
}


class TwoRanks(NamedTuple):
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def two_ranks(random_policy_folder: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """Return the results of all two-rank runs from one launch, because starting ranks takes longer than a run."""
    folder = tmp_path_factory.mktemp("two_ranks")
    configs = {
        name: settings(random_policy_folder, labels, folder / name, **training)
        | (LORA if name.startswith("lora") else {})
        for name, training in TWO_RANKS.items()
    }
    configs["llama"] = {**configs["parts"], "model": str(write_backbone("llama", folder / "llama-model"))}
    configs["lora_bf16"]["gradient_checkpointing"] = True
    jobs: list[dict[str, Any]] = [
        {"config": name, "parts": str(folder / f"{name}.json")} for name in ("parts", "llama")
    ]
    faulty = {*STOPPED, "nan0", "nan3", "parts"}
    jobs += [{"config": name} for name in TWO_RANKS if name not in faulty]
    jobs += [{"config": name, **fault} for name in STOPPED for fault in ({"sigterm": 4}, {})]
    jobs += [{"config": name, "nan": [3]} for name in ("nan0", "nan3")]
    return TwoRanks(folder, run_jobs(folder, configs, jobs, ranks=2).stdout)


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3", "offload2", "offload3"])
def test_two_ranks_train_as_one(two_ranks: TwoRanks, one_rank: Path, name: str) -> None:
    run = two_ranks.folder / name
    assert losses(run) == pytest.approx(losses(one_rank), rel=1e-3)
    assert losses(run, "eval") == pytest.approx(losses(one_rank, "eval")[-1:], rel=1e-3)
    assert_same_model(run, one_rank, atol=2e-3)


@pytest.mark.parametrize("name", ["zero2", "zero3", "offload2", "offload3"])
def test_gradient_norms_of_two_ranks(two_ranks: TwoRanks, one_rank: Path, name: str) -> None:
    """Adam would hide a wrong gradient scale."""
    norms = losses(one_rank, name="gradient_norm")
    assert losses(two_ranks.folder / name, name="gradient_norm") == pytest.approx(norms, rel=1e-2)


@pytest.mark.parametrize("name", BF16)
def test_two_ranks_in_bf16(two_ranks: TwoRanks, one_rank: Path, name: str) -> None:
    run, norms = two_ranks.folder / name, losses(one_rank, name="gradient_norm")
    assert losses(run) == pytest.approx(losses(one_rank), rel=0.05)
    assert losses(run, name="gradient_norm") == pytest.approx(norms, rel=0.05)
    assert load_file(run / "prm/model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_adapters_on_two_ranks(two_ranks: TwoRanks, lora_rank: Path) -> None:
    for name in ("lora2", "lora3"):
        assert losses(two_ranks.folder / name) == pytest.approx(losses(lora_rank), rel=1e-3), name
        assert_same_model(two_ranks.folder / name, lora_rank, atol=2e-3)
    assert losses(two_ranks.folder / "lora_bf16") == pytest.approx(losses(lora_rank), rel=0.05)


def test_a_stop_on_two_ranks(two_ranks: TwoRanks) -> None:
    assert two_ranks.printed.count("SIGTERM; saved after step 4 of 6") == len(STOPPED)
    for name, undisturbed in STOPPED.items():
        tolerance = FROZEN_VISION if name.startswith("lora") else 0
        run, expected = two_ranks.folder / name, two_ranks.folder / undisturbed
        assert losses(run) == pytest.approx(losses(expected), rel=tolerance, abs=0), name
        assert_same_model(run, expected, atol=tolerance)


def test_a_nan_gradient_on_two_ranks(two_ranks: TwoRanks) -> None:
    folder = two_ranks.folder
    for name in ("nan0", "nan3"):
        undisturbed = losses(folder / name.replace("nan", "zero"))
        rates = losses(folder / name, name="learning_rate")
        assert losses(folder / name, name="skipped") == [0, 0, 1, 0, 0, 0], name
        assert losses(folder / name)[:3] == [*undisturbed[:2], None], name
        assert rates[3] == rates[2], name
    assert losses(folder / "nan3")[3:] == pytest.approx(losses(folder / "nan0")[3:], rel=1e-3)
    assert_same_model(folder / "nan3", folder / "nan0", atol=2e-3)


def test_two_ranks_load_shards(two_ranks: TwoRanks) -> None:
    assert_parts(json.loads((two_ranks.folder / "parts.json").read_text()), [])
    # Added rows need a new embedding table, unsharded until training starts; with tied weights, there is only one.
    tied = ["backbone.model.embed_tokens.weight"]
    assert_parts(json.loads((two_ranks.folder / "llama.json").read_text()), tied)


def assert_parts(found: dict[str, Any], not_in_parts: list[str]) -> None:
    assert found["different"] == []
    assert found["not_in_parts"] == not_in_parts
    assert found["kept"] < 0.52
    assert found["whole"] < 0.25


def test_nothing_to_train_on(random_policy_folder: Path, labels: Path, tmp_path: Path) -> None:
    values = settings(random_policy_folder, labels, tmp_path)
    with pytest.raises(DataError, match="no labeled path of at most max_length=10 tokens"):
        train_prm(TrainConfig(**values, max_length=10))
