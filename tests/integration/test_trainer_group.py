"""Ray actors that train together: two ranks equal one, and what happens when a rank fails or hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from mmprm.backbone.load import load_backbone
from mmprm.errors import DataError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.tiny.world import make_problems
from mmprm.types import Problem
from policy_rl.algorithms.losses import KlConfig, LossConfig
from policy_rl.trainer.config import CriticConfig, TrainerConfig, UpdateConfig
from policy_rl.trainer.group import TrainerGroup
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample
from policy_rl.weights.transfer import FileTransfer, Published

pytestmark = pytest.mark.integration

PLAIN = PromptConfig(preset="plain")
PROBE = (10, 11, 12, 13)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def samples(random_policy_folder: Path) -> list[TrainingSample]:
    """Five groups of four responses; two of them have no image."""
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    encoder, rng = PromptEncoder(backbone, processor, PLAIN), np.random.default_rng(0)
    problems = [tiny.problem for tiny in make_problems(3, seed=0, split="train")]
    problems += [Problem("long", "red + blue + green + red = ?", "5"), Problem("short", "2 + 3 = ?", "5")]
    made = []
    for group, problem in enumerate(problems):
        for _ in range(4):
            ids = tuple(int(i) for i in rng.integers(10, 100, size=rng.integers(2, 20)))
            arrays = {"engine": rng.normal(-5, 0.1, len(ids)), "advantages": rng.normal(size=len(ids))}
            arrays |= {"returns": rng.normal(size=len(ids))}
            made.append(TrainingSample(problem, group, len(encoder._encode(problem).ids_P), ids, **arrays))
    return made


def settings(ranks: int, stage: int) -> TrainerConfig:
    # So few tokens that there are micro-batches without any image beside others with some.
    optimization = UpdateConfig(precision="fp32", zero_stage=stage, micro_batch_tokens=60, learning_rate=1e-3, seed=3)
    loss = LossConfig(clip_low=0.05, clip_high=0.05, kl=KlConfig(coefficient=0.1), aggregation="prompt_mean")
    critic = CriticConfig(learning_rate=1e-3, warmup_updates=1)
    return TrainerConfig(ranks=ranks, loss=loss, critic=critic, optimization=optimization, timeout_seconds=300)


def go_through(trainer: Any, samples: list[TrainingSample], folder: Path) -> tuple[list[dict[str, float]], Published]:
    """Three updates of one rollout, the first of the critic alone, a checkpoint, the model and weights for the
    engines."""
    metrics = [trainer.update(samples, number / 3) for number in range(3)]
    trainer.save(folder / "checkpoints", {"step": 1}, 1)
    trainer.save_model(folder / "model")
    trainer.open_transfer(lambda rank: FileTransfer(folder / "shared", is_main=rank == 0))
    return metrics, trainer.publish(2, PROBE, torch.float32)


def misbehaving(how: str) -> Any:
    """Something to do on every rank, which goes wrong on rank 1 only."""

    def make(rank: int) -> None:
        if rank == 1 and how == "fails":
            raise DataError("the disk of rank 1 is full")
        if rank == 1:
            time.sleep(600)

    return make


def filled(trainer: Trainer, samples: list[TrainingSample]) -> list[TrainingSample]:
    found = trainer.log_probs(samples)
    return [
        replace(each, old=found[position].old, ref=found[position].ref, values=found[position].values)
        for position, each in enumerate(samples)
    ]


def test_two_ranks_equal_one(random_policy_folder: Path, samples: list[TrainingSample], tmp_path: Path) -> None:
    """Log-probabilities, metrics, weights, what is published and resumed, under ZeRO 0, 2 and 3; then bad ends."""
    model, arguments = str(random_policy_folder), (PLAIN, 0.9, 10, True)
    one = Trainer(model, settings(1, 0), *arguments)
    ready = filled(one, samples)
    expected, published = go_through(one, ready, tmp_path / "one")
    assert (expected[1]["clip_fraction"], expected[1]["learning_rate"]) == (0, 1e-3), "the critic alone came first"
    assert expected[2]["clip_fraction"] > 0.05
    weights = load_file(tmp_path / "one/model/model.safetensors")
    for stage in (0, 2, 3):
        folder = tmp_path / f"zero{stage}"
        group = TrainerGroup(model, settings(2, stage), *arguments)
        both = group.log_probs(samples)
        for ours, theirs in zip(both, ready, strict=True):
            for name in ("old", "ref", "values"):
                np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5)
        assert group.log_probs(samples, reference_only=True)[0].old is None
        with pytest.raises(DataError, match="a response without tokens"):
            group.update([replace(both[0], token_ids=())])
        metrics, sent = go_through(group, both, folder)
        for ours, theirs in zip(metrics, expected, strict=True):
            assert theirs.keys() - ours.keys() == ({"gradient_norm"} if stage == 0 else set())
            theirs = {name: theirs[name] for name in ours} | {"seconds": ours["seconds"]}
            assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5)
        for name, tensor in load_file(folder / "model/model.safetensors").items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-3)
        assert sent.probe == pytest.approx(published.probe, abs=2e-3)
        assert (sent.tensors, sent.bytes) == (published.tensors, published.bytes)
        if stage == 0:
            assert group.resume(folder / "checkpoints") == {"step": 1}
            group.close()
        elif stage == 2:
            fails(group, samples)
        else:
            hangs(group)


def fails(group: TrainerGroup, samples: list[TrainingSample]) -> None:
    """One rank alone: its error comes out as it is, and nothing goes on with half of the ranks."""
    with pytest.raises(DataError, match=r"^the disk of rank 1 is full$"):
        group.open_transfer(misbehaving("fails"))
    with pytest.raises(TrainingError, match="the trainer has ended: the disk of rank 1 is full"):
        group.update(samples)


def hangs(group: TrainerGroup) -> None:
    group._timeout_seconds = 3
    with pytest.raises(
        TrainingError, match=r"waited 3 s in vain for open_transfer .*: rank 1: .*; ranks .* answered: \[0\]"
    ):
        group.open_transfer(misbehaving("hangs"))


def test_a_rank_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match=r"has no config\.json, so it is not a model folder"):
        TrainerGroup(str(tmp_path / "empty"), settings(1, 0), PLAIN, 1.0, 10)
