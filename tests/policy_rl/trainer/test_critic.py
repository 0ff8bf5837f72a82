"""Test how a critic learns on one rank: its learning rate, its warm-up, and its checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from one_rank import config, start, weights_of

from policy_rl.trainer.config import CriticConfig, TrainerConfig, UpdateConfig
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_critic_has_its_own_learning_rate(random_policy_folder: Path, samples: list[TrainingSample]) -> None:
    """Adam's first step moves a weight by its learning rate, regardless of the gradient."""
    critic = CriticConfig(learning_rate=1e-2, warmup_updates=0)
    trainer = start(random_policy_folder, config(rate=1e-4, critic=critic), critic=True)
    before, found = weights_of(trainer), trainer.log_probs(samples)
    ready = [replace(e, values=found[i].values, returns=e.advantages + 1) for i, e in enumerate(samples)]
    assert trainer.update(ready)["learning_rate"] == pytest.approx(1e-4)
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in weights_of(trainer).items()}
    head = {name: moved.pop(name) for name in list(moved) if name.startswith("value_head.")}
    assert list(head.values()) == pytest.approx([1e-2, 1e-2], rel=0.01)
    assert max(moved.values()) == pytest.approx(1e-4, rel=0.01)


def test_the_critics_learning_rate_may_be_the_policys_and_then_another(
    random_policy_folder: Path, samples: list[TrainingSample], tmp_path: Path
) -> None:
    def trainer(rate: float) -> Trainer:
        critic = CriticConfig(learning_rate=1e-4, warmup_updates=0)
        return start(random_policy_folder, config(rate=rate, critic=critic), critic=True)

    trainer(1e-4).save(tmp_path, {"step": 1}, keep=1)
    lower = trainer(1e-5)
    assert lower.resume(tmp_path) == {"step": 1}
    found = lower.log_probs(samples)
    ready = [replace(e, values=found[i].values, returns=e.advantages + 1) for i, e in enumerate(samples)]
    before, metrics = weights_of(lower), lower.update(ready)
    assert math.isfinite(metrics["gradient_norm"])
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in weights_of(lower).items()}
    assert moved["value_head.weight"] == pytest.approx(1e-4, rel=0.01)
    assert moved["backbone.lm_head.weight"] == pytest.approx(1e-5, rel=0.01)


def test_the_critic_learns_alone_at_first(
    random_policy_folder: Path, samples: list[TrainingSample], tmp_path: Path
) -> None:
    """Two updates change only the value head, bitwise, despite weight decay and a checkpoint; then both learn."""
    optimization = UpdateConfig(precision="fp32", learning_rate=1e-3, weight_decay=0.1, micro_batch_tokens=400)
    settings = TrainerConfig(optimization=optimization, critic=CriticConfig(warmup_updates=2, learning_rate=1e-2))
    trainer = start(random_policy_folder, settings, critic=True)
    before = weights_of(trainer)
    for update in range(3):
        found = trainer.log_probs(samples)
        ready = [
            replace(e, old=found[i].old, values=found[i].values, returns=np.ones(len(e.token_ids)))
            for i, e in enumerate(samples)
        ]
        metrics = trainer.update(ready)
        assert (metrics["learning_rate"] == 0) == (update < 2)
        changed = {name for name, tensor in weights_of(trainer).items() if not torch.equal(tensor, before[name])}
        assert changed >= {"value_head.weight", "value_head.bias"}
        assert (len(changed) == 2) == (update < 2)
        trainer.save(tmp_path, {"step": update + 1}, keep=1)
        trainer = start(random_policy_folder, settings, critic=True)
        trainer.resume(tmp_path)
    assert metrics["value_loss"] < 0.5, "values start at 0, so the loss is half the square of 1"
