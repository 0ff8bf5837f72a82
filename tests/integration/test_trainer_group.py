"""Test Ray actors that train together: two ranks equal one, and a rank that fails or hangs ends the group."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    """Return five groups of four responses; two of the groups have no image."""
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
    # Few enough tokens that some micro-batches have no image while others do.
    optimization = UpdateConfig(precision="fp32", zero_stage=stage, micro_batch_tokens=60, learning_rate=1e-3, seed=3)
    loss = LossConfig(clip_low=0.05, clip_high=0.05, kl=KlConfig(coefficient=0.1), aggregation="prompt_mean")
    critic = CriticConfig(learning_rate=1e-3, warmup_updates=1)
    return TrainerConfig(ranks=ranks, loss=loss, critic=critic, optimization=optimization, timeout_seconds=300)


def go_through(trainer: Any, samples: list[TrainingSample], folder: Path) -> tuple[list[dict[str, float]], Published]:
    """Take three updates on one rollout, of which the first trains the critic alone; save and publish the model."""
    metrics = [trainer.update(samples, number / 3) for number in range(3)]
    trainer.save(folder / "checkpoints", {"step": 1}, 1)
    trainer.save_model(folder / "model")
    trainer.open_transfer(lambda rank: FileTransfer(folder / "shared", is_main=rank == 0))
    return metrics, trainer.publish(2, PROBE, torch.float32)


def misbehaving(how: str) -> Any:
    """Return a function to run on every rank that fails or hangs on rank 1 only."""

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


@dataclass(frozen=True)
class Trained:
    """Holds what a trainer returned for the samples and after three updates. `samples` have its log-probabilities."""

    trainer: Any
    stage: int
    samples: list[TrainingSample]
    metrics: list[dict[str, float]]
    published: Published
    folder: Path


ARGUMENTS = (PLAIN, 0.9, 10, True)


@pytest.fixture(scope="module")
def one_rank(
    random_policy_folder: Path, samples: list[TrainingSample], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp("one")
    trainer = Trainer(str(random_policy_folder), settings(1, 0), *ARGUMENTS)
    ready = filled(trainer, samples)
    return Trained(trainer, 0, ready, *go_through(trainer, ready, folder), folder)


@pytest.fixture(scope="module", params=[0, 2, 3], ids=lambda stage: f"ZeRO {stage}")
def two_ranks(
    request: pytest.FixtureRequest,
    random_policy_folder: Path,
    samples: list[TrainingSample],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Trained]:
    folder, stage = tmp_path_factory.mktemp("two"), request.param
    group = TrainerGroup(str(random_policy_folder), settings(2, stage), *ARGUMENTS)
    ready = group.log_probs(samples)
    with pytest.raises(DataError, match="a response without tokens"):
        group.update([replace(ready[0], token_ids=())])
    yield Trained(group, stage, ready, *go_through(group, ready, folder), folder)
    group.close()


def test_the_critic_learns_before_the_policy(one_rank: Trained) -> None:
    assert (one_rank.metrics[1]["clip_fraction"], one_rank.metrics[1]["learning_rate"]) == (0, 1e-3)
    assert one_rank.metrics[2]["clip_fraction"] > 0.05


def test_two_ranks_compute_the_log_probabilities_of_one(one_rank: Trained, two_ranks: Trained) -> None:
    for ours, theirs in zip(two_ranks.samples, one_rank.samples, strict=True):
        for name in ("old", "ref", "values"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5)


def test_two_ranks_report_the_metrics_of_one(one_rank: Trained, two_ranks: Trained) -> None:
    for ours, theirs in zip(two_ranks.metrics, one_rank.metrics, strict=True):
        assert theirs.keys() - ours.keys() == ({"gradient_norm"} if two_ranks.stage == 0 else set())
        own = {name: ours[name] for name in ("seconds", "vision_calls")}  # on rank 0, which has half of the images
        expected = {name: theirs[name] for name in ours} | own
        assert ours == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_two_ranks_save_the_weights_of_one(one_rank: Trained, two_ranks: Trained) -> None:
    expected = load_file(one_rank.folder / "model/model.safetensors")
    found = load_file(two_ranks.folder / "model/model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-3)


def test_two_ranks_publish_the_weights_of_one(one_rank: Trained, two_ranks: Trained) -> None:
    ours, theirs = two_ranks.published, one_rank.published
    assert ours.probe == pytest.approx(theirs.probe, abs=2e-3)
    assert (ours.tensors, ours.bytes) == (theirs.tensors, theirs.bytes)


def test_the_reference_alone_is_computed_on_request(two_ranks: Trained, samples: list[TrainingSample]) -> None:
    found = two_ranks.trainer.log_probs(samples, reference_only=True)
    assert found[0].old is None
    assert found[0].ref is not None


def test_two_ranks_resume(two_ranks: Trained) -> None:
    assert two_ranks.trainer.resume(two_ranks.folder / "checkpoints") == {"step": 1}


def test_a_rank_that_fails_or_hangs_ends_the_group(two_ranks: Trained, samples: list[TrainingSample]) -> None:
    """It runs last for each group, because it ends the group."""
    group = two_ranks.trainer
    if two_ranks.stage == 2:
        group._timeout_seconds = 10
        with pytest.raises(
            TrainingError, match=r"timed out after 10 s waiting for open_transfer .*rank 1: .*answered: \[0\]"
        ):
            group.open_transfer(misbehaving("hangs"))
    else:
        with pytest.raises(DataError, match=r"^the disk of rank 1 is full$"):
            group.open_transfer(misbehaving("fails"))
    with pytest.raises(TrainingError, match=r"the trainer has ended: (the disk of rank 1 is full|timed out after )"):
        group.update(samples)


def test_a_rank_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match=r"has no config\.json, so it is not a model folder"):
        TrainerGroup(str(tmp_path / "empty"), settings(1, 0), PLAIN, 1.0, 10)
