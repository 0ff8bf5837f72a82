"""Wrap DeepSpeed to take optimizer steps on any number of micro-batches, at any ZeRO stage."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmprm.training.config import OptimizationConfig
from mmprm.training.ranks import Ranks
from mmprm.training.sharding import deepspeed_config, is_matrix, whole


class Engine:
    """Trains a model with DeepSpeed.

    Parameters in `head` use the learning rate `head_rate` instead of the configured one.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizationConfig,
        total_steps: int,
        ranks: Ranks,
        head: Collection[nn.Parameter] = (),
        head_rate: float = 0.0,
    ) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # The groups do not depend on the learning rates, which may change when a run is resumed.
        in_head = set(head)
        groups = [
            {
                "params": [p for p in trainable if is_matrix(p) == decays and (p in in_head) == own],
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr": rate,
            }
            for own, rate in ((False, config.learning_rate), (True, head_rate))
            for decays in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        self._in_head = [group["params"][0] in in_head for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self._keeps_sums = config.offload != "none" and config.zero_stage < 3
        """Whether DeepSpeed keeps the accumulated gradients of a skipped step, although it should drop them."""
        self.ranks = ranks
        self.skipped = False
        """Whether the last step was skipped because its loss or gradient was not finite."""
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda step: learning_rate_share(step, total_steps, config),
            ),
            config=deepspeed_config(config),
        )

    def step(self, losses: Iterable[Callable[[nn.Module], Tensor]], denominator: float) -> tuple[float, float | None]:
        """Take one optimizer step on the sum of the losses of all micro-batches on all ranks, divided by `denominator`.

        Every rank must pass the same number of micro-batches. Returns the loss and the gradient norm before clipping,
        which is None in float32 without ZeRO on several ranks.

        If the loss or the gradient of any rank is not finite, no rank takes the step: weights, optimizer moments and
        learning rate schedule do not change, the gradients are dropped, and `skipped` is set. The returned loss may
        then be finite, but the norm is infinite.
        """
        total = 0.0
        for loss_sum in losses:
            loss = loss_sum(self.deepspeed) / denominator
            value = loss.item()
            total += value
            # DeepSpeed averages gradients over ranks, but the denominator already covers all ranks, hence the factor.
            # A non-finite loss can have a finite gradient, so it becomes NaN, which reaches all ranks.
            self.deepspeed.backward(loss * (self.ranks.count if math.isfinite(value) else math.nan))
        optimizer = self.deepspeed.optimizer
        if hasattr(optimizer, "overflow"):  # DeepSpeed's own optimizers skip a step based on the gradients of all ranks
            self.deepspeed.step()
            (total,) = self.ranks.sum(total)
            self.skipped = bool(optimizer.overflow)
            if self.skipped and self._keeps_sums:  # otherwise, they would be added to the next step's gradients
                optimizer.averaged_gradients.update(dict.fromkeys(optimizer.averaged_gradients))
        else:
            own_norm = self._own_gradient_norm()
            total, broken = self.ranks.sum(total, not math.isfinite(own_norm))
            self.skipped = broken > 0
            if self.skipped:
                optimizer.zero_grad()
            else:
                self.deepspeed.step()
        norm = math.inf if self.skipped else self.deepspeed.get_global_grad_norm()
        if norm is None and self.ranks.count == 1:
            norm = own_norm
        return total, None if norm is None else float(norm)

    def _own_gradient_norm(self) -> float:
        """Return the norm of the gradients from this rank's micro-batches."""
        gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients).item()

    @property
    def learning_rate(self) -> float:
        """Return the learning rate that the next update uses."""
        return self.deepspeed.get_lr()[0]

    def set_rates(self, step: float | None = None, head_only: bool = False) -> None:
        """Set the learning rates of the next update to the scheduled values at optimizer step `step`.

        `step` defaults to the number of steps taken. With `head_only`, the learning rate of all other parameters is 0.
        """
        scheduler = self.deepspeed.lr_scheduler
        step = scheduler.last_epoch if step is None else step
        groups = zip(
            self.deepspeed.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, self._in_head, strict=True
        )
        for group, peak, share, in_head in groups:
            group["lr"] = peak * share(step) if in_head or not head_only else 0.0

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """Gather the state dict of the submodule at `prefix` (ending in a dot) on the CPU of rank 0.

        The result is empty on all other ranks. Every rank must call it.
        """
        gathered: dict[str, Tensor] = {}
        copies: dict[int, Tensor] = {}  # tied tensors stay tied
        for name, tensor in self.deepspeed.module.state_dict(keep_vars=True).items():
            with whole([tensor]):
                if self.ranks.is_main and name.startswith(prefix):
                    if id(tensor) not in copies:
                        copies[id(tensor)] = tensor.detach().cpu().clone()
                    gathered[name.removeprefix(prefix)] = copies[id(tensor)]
        return gathered

    @contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """Yield the model in evaluation mode with gradients disabled."""
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                yield self.deepspeed
        finally:
            self.deepspeed.train()


def for_inference(model: nn.Module, config: OptimizationConfig, ranks: Ranks) -> nn.Module:
    """Prepare a model for inference: no gradients, evaluation mode, on its device.

    At ZeRO-3, its weights are sharded over the ranks like those of a trained model, and in CPU memory with offload=all.
    Load the model within `loading_in_parts`. All ranks must call the model equally often.
    """
    model.requires_grad_(False).eval()
    if config.zero_stage < 3:
        return model.to(ranks.device)
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, config=deepspeed_config(config))
    engine.eval()  # unlike torch's, it returns nothing
    return engine


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}
"""Learning rate decay functions by name, each of which maps progress in [0, 1] to a factor that falls from 1 to 0.
"""


def learning_rate_share(step: float, total: int, config: OptimizationConfig) -> float:
    """Return the learning rate at optimizer step `step` (from 0 to total − 1), as a fraction of its peak.

    It rises linearly over w = ceil(warmup · total) steps as (step + 1) / (w + 1), then falls as
    final + (1 − final) · decay((step − w) / (total − w)), with decay(p) = ½(1 + cos(πp)) or 1 − p.
    """
    rising = math.ceil(config.warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = min(1.0, (step - rising) / max(1, total - rising))
    final = config.final_learning_rate
    return final + (1 - final) * DECAYS[config.learning_rate_decay](progress)
