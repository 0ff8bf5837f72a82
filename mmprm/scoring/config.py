"""Which PRM scores, through what, and how much at a time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmprm.config import Config


class ScorerConfig(Config):
    prm: str
    """Folder of a process reward model, as `mmprm train` writes it."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """transformers: starts at once; vllm: the pooling runner, faster where much is scored. Equal within 1e-3 in
    float32."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of weights and activations."""
    batch_tokens: int = Field(16384, ge=1)
    """Most tokens, padding included, that are computed at once. transformers computes a longer solution alone, vllm
    refuses it."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """vllm on GPU: share of the memory for weights and cache."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """vllm on CPU: memory for the keys and values of the solutions in flight."""
