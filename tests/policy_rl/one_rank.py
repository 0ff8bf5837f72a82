"""Provide trainers on one rank, and samples for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmprm.backbone.load import load_backbone
from mmprm.prompts import PromptConfig
from mmprm.tiny.world import make_problems
from mmprm.types import Problem
from policy_rl.trainer.config import TrainerConfig, UpdateConfig
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample

PLAIN = PromptConfig(preset="plain")


def config(tokens: int = 400, rate: float = 1e-3, **more: Any) -> TrainerConfig:
    optimization = UpdateConfig(precision="fp32", micro_batch_tokens=tokens, learning_rate=rate, max_bad_steps=2)
    return TrainerConfig(optimization=optimization, **more)


def start(folder: Path, settings: TrainerConfig | None = None, **more: Any) -> Trainer:
    return Trainer(str(folder), settings or config(), PLAIN, 1.0, 100, **more)


def make_samples(folder: Path) -> list[TrainingSample]:
    """Return four groups of three responses; the last group has no image."""
    backbone, processor = load_backbone(str(folder), torch.float32)
    encoder, rng = PromptEncoder(backbone, processor, PLAIN), np.random.default_rng(0)
    problems = [tiny.problem for tiny in make_problems(3, seed=0, split="train")] + [Problem("t", "2 + 3 = ?", "5")]
    made = []
    for group, problem in enumerate(problems):
        for _ in range(3):
            ids = tuple(int(i) for i in rng.integers(10, 100, size=rng.integers(2, 12)))
            engine, advantages = rng.normal(-5, 0.1, len(ids)), np.full(len(ids), rng.normal())
            tokens = len(encoder._encode(problem).ids_P)
            made.append(TrainingSample(problem, group, tokens, ids, engine=engine, advantages=advantages))
    return made


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer._policy.state_dict().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=0, atol=atol)
