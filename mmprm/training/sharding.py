"""Shard weights over ranks with ZeRO-3: load a model in shards, and gather full tensors temporarily."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmprm.training.config import OptimizationConfig


def deepspeed_config(config: OptimizationConfig) -> dict[str, Any]:
    """Build DeepSpeed's configuration from the optimization settings."""
    import torch

    cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    bf16 = config.precision == "bf16"
    return {
        # The caller decides when a step ends, because the number of micro-batches differs between steps.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.gradient_clipping,
        "bf16": {"enabled": bf16, "immediate_grad_update": True},
        # Sum gradients in float32, because a bf16 sum stops growing at 256 times the size of its addends.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bf16 else {}),
        "zero_optimization": {
            "stage": config.stage,
            "overlap_comm": config.stage == 3,  # gather the weights of the next layers during the current one
            **({"offload_optimizer": cpu} if config.offload != "none" else {}),
            **({"offload_param": cpu} if config.offload == "all" else {}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


@contextmanager
def loading_in_parts(config: OptimizationConfig) -> Iterator[None]:
    """Make transformers load one shard of a model per rank inside the `with` block if the ZeRO stage is 3.

    Every rank must load the same model. With other stages the context has no effect.
    """
    if config.zero_stage < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    asked = HfDeepSpeedConfig(deepspeed_config(config))  # transformers only keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del asked


@contextmanager
def whole(tensors: Iterable[Tensor], changed: bool = False) -> Iterator[None]:
    """Gather the full tensors on every rank inside the `with` block; unsharded tensors are left unchanged.

    With `changed`, modifications made by rank 0 are kept. Every rank must call it.
    """
    parts = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not parts:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts, modifier_rank=0 if changed else None):
        yield


def is_matrix(tensor: Tensor) -> bool:
    """Return whether the full (unsharded) tensor has more than one dimension.

    A sharded tensor is itself empty, so its recorded full shape counts.
    """
    return len(getattr(tensor, "ds_shape", tensor.shape)) > 1
