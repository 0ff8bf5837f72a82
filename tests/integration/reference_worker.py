"""Compute the log-probabilities of an RL trainer's reference model: replicated, sharded, and sharded with CPU offload.

Rank r writes `precision.r.json`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from mmprm.prompts import PromptConfig
from mmprm.tiny.world import make_problems
from mmprm.types import Problem
from policy_rl.algorithms.losses import KlConfig, LossConfig
from policy_rl.trainer.config import TrainerConfig, UpdateConfig
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import TrainingSample

PLACES = {"whole": (2, False), "sharded": (3, False), "offloaded": (3, True)}
"""ZeRO stage, and whether the reference is offloaded."""


def make_samples(trainer: Trainer) -> list[TrainingSample]:
    """Return four groups of four responses, one of them without an image."""
    rng = random.Random(0)
    problems = [tiny.problem for tiny in make_problems(3, seed=0, split="train")] + [Problem("text", "2 + 3 = ?", "5")]
    made = []
    for group, problem in enumerate(problems):
        tokens = len(trainer._encoder._encode(problem).ids_P)
        for _ in range(4):
            ids = tuple(rng.randrange(10, 100) for _ in range(rng.randrange(2, 20)))
            made.append(TrainingSample(problem, group, tokens, ids))
    return made


def measure(model: str, precision: str, stage: int, offload: bool) -> dict[str, Any]:
    """Return this rank's log-probabilities, the number of elements it holds, and the model's total."""
    optimization = UpdateConfig(precision=precision, zero_stage=stage, micro_batch_tokens=120)
    loss = LossConfig(kl=KlConfig(coefficient=0.1))
    config = TrainerConfig(ranks=2, loss=loss, optimization=optimization, offload_reference=offload)
    trainer = Trainer(model, config, PromptConfig(preset="plain"), 0.9, 10)
    found = trainer.log_probs(make_samples(trainer), reference_only=True)
    parameters = list(trainer._reference.parameters())
    held = sum(getattr(parameter, "ds_tensor", parameter).numel() for parameter in parameters)
    whole = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
    gradients = any(parameter.requires_grad for parameter in parameters)
    own = {position: each.ref.tolist() for position, each in found.items()}
    return {"ref": own, "held": held, "whole": whole, "gradients": gradients}


def main(model: str, folder: Path) -> None:
    """Write the results for both precisions."""
    for precision in ("fp32", "bf16"):
        results = {place: measure(model, precision, *how) for place, how in PLACES.items()}
        rank = torch.distributed.get_rank()
        (folder / f"{precision}.{rank}.json").write_text(json.dumps(results), encoding="utf-8")
