"""DeepSpeed behind a small door: one optimizer step from any number of micro-batches, sharded by ZeRO stage."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmprm.training.config import TrainingConfig
from mmprm.training.ranks import Ranks
from mmprm.training.sharding import deepspeed_config, is_matrix, whole


class Engine:
    """`rates`: learning rates of parameters that do not have the configuration's."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        total_steps: int,
        ranks: Ranks,
        rates: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rate_of = dict.fromkeys(trainable, config.learning_rate) | dict(rates or {})
        groups = [
            {
                "params": [p for p in trainable if is_matrix(p) == decays and rate_of[p] == rate],
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr": rate,
            }
            for rate in dict.fromkeys((config.learning_rate, *rate_of.values()))
            for decays in (True, False)
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=config.betas,
            fused=ranks.device.type == "cuda",
        )
        self._keeps_sums = config.offload != "none" and config.zero_stage < 3
        """Whether DeepSpeed forgets to drop the sums of gradients where it skips a step."""
        self.ranks = ranks
        self.skipped = False
        """Whether the last step changed nothing, because its loss or its gradient was not finite."""
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
        Where the loss or the gradient of any rank is not finite, no rank takes the step: weights, optimizer moments and
        the learning rate schedule stay as they were, the gradients are dropped, and `skipped` is set. The loss returned
        may then be finite, its gradient's norm is infinite.
        """
        total = 0.0
        for loss_sum in losses:
            loss = loss_sum(self.deepspeed) / denominator
            value = loss.item()
            total += value
            # DeepSpeed averages gradients over ranks; the denominator is that of all ranks already. A loss that is not
            # finite can have a finite gradient; NaN carries it to all ranks.
            self.deepspeed.backward(loss * (self.ranks.count if math.isfinite(value) else math.nan))
        optimizer = self.deepspeed.optimizer
        if hasattr(optimizer, "overflow"):  # DeepSpeed's own optimizers skip by the gradient of all ranks
            self.deepspeed.step()
            (total,) = self.ranks.sum(total)
            self.skipped = bool(optimizer.overflow)
            if self.skipped and self._keeps_sums:  # or they would spoil the next step
                optimizer.averaged_gradients.update(dict.fromkeys(optimizer.averaged_gradients))
        else:
            total, broken = self.ranks.sum(total, not self._gradient_is_finite())
            self.skipped = broken > 0
            if self.skipped:
                optimizer.zero_grad()
            else:
                self.deepspeed.step()
        norm = math.inf if self.skipped else self.deepspeed.get_global_grad_norm()
        return total, None if norm is None else float(norm)

    def _gradient_is_finite(self) -> bool:
        gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
        return bool(nn.utils.get_total_norm(gradients).isfinite())

    @property
    def learning_rate(self) -> float:
        return self.deepspeed.get_lr()[0]

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """State of the submodule that `prefix` names (ending in a dot), on the CPU of rank 0; empty on the others.

        Every rank must call it.
        """
        gathered: dict[str, Tensor] = {}
        copies: dict[int, Tensor] = {}  # tied tensors stay one tensor
        for name, tensor in self.deepspeed.module.state_dict(keep_vars=True).items():
            with whole([tensor]):
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
