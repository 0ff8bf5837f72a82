"""Measure the bytes that a DeepSpeed engine holds on this rank, by precision and ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm
from mmprm.prm.train import TrainConfig, prepare_model
from mmprm.tiny.world import make_problems, solve
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.ranks import Ranks, join_ranks
from mmprm.types import Solution

SETTINGS = ("bf16/1", "bf16/2", "bf16/3", "fp32/0", "fp32/1", "fp32/2", "fp32/3")
"""Precision and ZeRO stage."""


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the total bytes of the tensors' storages, counting each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def measure(base: str, precision: str, stage: int, ranks: Ranks) -> dict[str, int]:
    training = TrainingConfig(precision=precision, zero_stage=stage)
    config = TrainConfig(model=base, labels="", output="", frozen=("vision",), training=training)
    prm = initialize_prm(base, PrmTokens(), dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    prepare_model(prm.model, config)
    engine = Engine(prm.model, training, 10, ranks)
    tiny = make_problems(1, seed=0, split="train")[0]
    inputs = prm.renderer.encode([Solution(tiny.problem, solve(tiny))])
    engine.deepspeed.backward(engine.deepspeed(**inputs).square().sum())
    optimizer, parameters = engine.deepspeed.optimizer, list(prm.model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    match stage, precision:
        case 1, "bf16":
            gradients += optimizer.fp32_groups_gradients_flat
        case 2, "bf16":
            gradients += (group.flat_partition for group in optimizer.averaged_gradients.values())
        case 2, "fp32":
            gradients += (gradient for group in optimizer.all_grad_tensors.values() for gradient in group)
        case 3, _:
            gradients.append(optimizer.grad_partitions_flat_buffer)
    held = {"gradients": sum(gradient.numel() * gradient.element_size() for gradient in gradients)}
    engine.deepspeed.step()
    weights = [parameter.ds_tensor if stage == 3 else parameter.data for parameter in parameters]
    inner = getattr(optimizer, "optimizer", optimizer)
    masters = [master for group in inner.param_groups for master in group["params"]]
    if stage == 3:
        masters = optimizer.fp32_partitioned_groups_flat
    moments = [value for state in inner.state.values() for value in state.values() if value.ndim]
    alone = {weight.untyped_storage().data_ptr() for weight in weights}
    held["weights"] = nbytes(weights)
    held["optimizer"] = nbytes([*moments, *(m for m in masters if m.untyped_storage().data_ptr() not in alone)])
    return held


def main(base: str, file: Path) -> None:
    """Write the bytes for each combination of precision and ZeRO stage to a JSON file."""
    ranks = join_ranks()
    found = {}
    for setting in SETTINGS:
        precision, stage = setting.split("/")
        found[setting] = measure(base, precision, int(stage), ranks)
    if ranks.is_main:
        file.write_text(json.dumps(found), encoding="utf-8")
