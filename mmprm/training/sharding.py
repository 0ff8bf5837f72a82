"""Weights in parts, one a rank (ZeRO-3): loading a model that way, and seeing a tensor whole for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmprm.training.config import TrainingConfig


def deepspeed_config(config: TrainingConfig) -> dict[str, Any]:
    import torch

    cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    bf16 = config.precision == "bf16"
    return {
        # The caller decides where a step ends: the number of micro-batches differs from step to step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.gradient_clipping,
        "bf16": {"enabled": bf16, "immediate_grad_update": True},
        # A sum in bf16 stops growing at 256 times what is added.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bf16 else {}),
        "zero_optimization": {
            "stage": config.stage,
            "overlap_comm": False,
            **({"offload_optimizer": cpu} if config.offload != "none" else {}),
            **({"offload_param": cpu} if config.offload == "all" else {}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


@contextmanager
def loading_in_parts(config: TrainingConfig) -> Iterator[None]:
    """Under ZeRO-3, transformers models that are loaded meanwhile keep on each rank its part of every weight only.

    Every rank must load the same model. The other stages load as ever.
    """
    if config.zero_stage < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    asked = HfDeepSpeedConfig(deepspeed_config(config))  # transformers keeps a weak reference and obeys it
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del asked


@contextmanager
def whole(tensors: Iterable[Tensor], changed: bool = False) -> Iterator[None]:
    """The full values of these tensors on every rank; those that are not in parts are left alone.

    With `changed`, what rank 0 makes of them stays. Every rank must call it.
    """
    parts = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not parts:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts, modifier_rank=0 if changed else None):
        yield


def is_matrix(tensor: Tensor) -> bool:
    """By its full shape; the tensor itself is empty while it is in parts."""
    return len(getattr(tensor, "ds_shape", tensor.shape)) > 1


@contextlib.contextmanager
def _gathered(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Shards of ZeRO 3 become whole on every rank for as long as the block lasts."""
    if not any(hasattr(tensor, "ds_id") for tensor in tensors):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(tensors)):
        yield
