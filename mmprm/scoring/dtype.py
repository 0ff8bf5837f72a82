"""Resolve the dtype in which a scorer computes, without loading weights."""

from __future__ import annotations

from mmprm.sampling.dtype import Device, this_device
from mmprm.scoring.config import LocalScorerConfig
from mmprm.weights import model_errors

_DTYPES = ("bfloat16", "float16", "float32")


def scorer_dtype(config: LocalScorerConfig, on_gpu: bool) -> str:
    """Return the configured dtype, where auto means float32 on CPU and the dtype in the checkpoint's config.json on
    GPU.

    If config.json has no dtype, auto means float32. On a GPU without bf16 instructions, float16 replaces bfloat16.
    """
    if config.dtype != "auto":
        return config.dtype
    if not on_gpu:
        return "float32"
    from transformers import AutoConfig

    with model_errors(config.prm):
        model = AutoConfig.from_pretrained(config.prm, trust_remote_code=False)
    stored = model.dtype or model.get_text_config().dtype  # Qwen3-VL's config.json has it only in text_config
    name = str(stored).removeprefix("torch.")
    if name == "bfloat16" and this_device() == Device("GPU", bf16=False):
        return "float16"
    return name if name in _DTYPES else "float32"
