"""Translate an engine configuration into vLLM's engine arguments."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mmprm.sampling.config import EngineConfig
from mmprm.sampling.dtype import engine_dtype
from mmprm.weights import LOAD_FORMAT, check_weights

CPU_KV_CACHE_GIB = 1.0
CPU_BLOCK_SIZE = 32
CPU_BATCHED_TOKENS = 32768
GPU_BATCHED_TOKENS = 2048
NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


def batched_tokens(max_num_seqs: int) -> int:
    """Return the maximum number of tokens per step of an engine on GPU.

    This is vLLM's default, or more if the default would leave less than half of a step for prompts. vLLM does not start
    if it is less than `max_num_seqs`.
    """
    return max(GPU_BATCHED_TOKENS, 2 * max_num_seqs)


def engine_arguments(config: EngineConfig, extra: Mapping[str, Any] = NO_ARGUMENTS) -> Any:
    """Convert an engine configuration to vLLM's engine arguments; `extra` holds additional arguments."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    kv_cache_gib = config.kv_cache_gib or (CPU_KV_CACHE_GIB if cpu else None)
    tokens = batched_tokens(config.max_num_seqs)
    tokens = None if tokens == GPU_BATCHED_TOKENS else tokens  # vLLM raises its own default for some models
    optional = {
        "max_model_len": config.max_model_len,
        # vLLM's default block size on CPU is 128, so shorter shared prefixes would never hit the cache.
        "block_size": config.block_size or (CPU_BLOCK_SIZE if cpu else None),
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30) if kv_cache_gib else None,
        "mm_processor_kwargs": config.pixel_limits or None,
        # Inside a Ray placement group, vLLM would start its own Ray workers, which would find no GPU there.
        "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else None,
        # With chunked prefill, vLLM rewinds the random generator of a seeded request, which stops the engine on CPU
        # ("CPU Generator does not use offset"). Prompts are therefore prefilled whole, many per step.
        "enable_chunked_prefill": False if cpu else None,
        "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, config.max_model_len or 0) if cpu else tokens,
    }
    check_weights(config.model)
    return AsyncEngineArgs(
        model=config.model,
        load_format=LOAD_FORMAT,
        dtype=engine_dtype(config),
        max_num_seqs=config.max_num_seqs,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=config.tensor_parallel_size,
        enforce_eager=cpu if config.compile is None else not config.compile,
        enable_prefix_caching=True,
        limit_mm_per_prompt={
            "image": config.images_per_prompt,
            "video": config.videos_per_prompt,
            "audio": config.audios_per_prompt,
        },
        seed=0,
        **{name: value for name, value in optional.items() if value is not None},
        **extra,
    )
