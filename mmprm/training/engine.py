"""DeepSpeed behind a small door: one optimizer step from any number of micro-batches, sharded by ZeRO stage."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmprm.training.config import TrainingConfig
from mmprm.training.ranks import Ranks


class Engine:
    def __init__(self, model: nn.Module, config: TrainingConfig, total_steps: int, ranks: Ranks) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=config.betas,
            fused=ranks.device.type == "cuda",
        )
        self.ranks = ranks
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda step: cosine_with_warmup(step, total_steps, config.warmup, config.final_learning_rate),
            ),
            config=deepspeed_config(config),
        )

    def step(self, losses: Iterable[Callable[[nn.Module], Tensor]], denominator: float) -> tuple[float, float | None]:
        """One update from Σ losses / denominator, over all micro-batches of all ranks, as many on each rank.

        Returns that loss, and the norm of its gradient before clipping; DeepSpeed tells none in float32 without ZeRO.
        """
        total = 0.0
        for loss_sum in losses:
            loss = loss_sum(self.deepspeed) / denominator
            total += loss.item()
            # DeepSpeed averages gradients over ranks; the denominator is that of all ranks already.
            self.deepspeed.backward(loss * self.ranks.count)
        self.deepspeed.step()
        (total,) = self.ranks.sum(total)
        norm = self.deepspeed.get_global_grad_norm()
        return total, None if norm is None else float(norm)

    @property
    def learning_rate(self) -> float:
        return self.deepspeed.get_lr()[0]

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """State of the submodule that `prefix` names (ending in a dot), on the CPU of rank 0; empty on the others.

        Every rank must call it.
        """
        import deepspeed

        gathered: dict[str, Tensor] = {}
        copies: dict[int, Tensor] = {}  # tied tensors stay one tensor
        for name, tensor in self.deepspeed.module.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                if self.ranks.is_main and name.startswith(prefix):
                    if id(tensor) not in copies:
                        copies[id(tensor)] = tensor.detach().cpu().clone()
                    gathered[name.removeprefix(prefix)] = copies[id(tensor)]
        return gathered

    @contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """The model in evaluation mode, without gradients."""
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                yield self.deepspeed
        finally:
            self.deepspeed.train()


def cosine_with_warmup(step: int, total: int, warmup: float, final: float) -> float:
    """Share of the peak learning rate at optimizer step `step` = 0 … total − 1.

    Rises linearly over w = ceil(warmup · total) steps as (step + 1) / (w + 1), then
    final + (1 − final) · ½(1 + cos(π · (step − w) / (total − w))).
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = min(1.0, (step - rising) / max(1, total - rising))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def deepspeed_config(config: TrainingConfig) -> dict[str, Any]:
    return {
        # The caller decides where a step ends: the number of micro-batches differs from step to step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.gradient_clipping,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
