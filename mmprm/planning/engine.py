"""Estimate the GPU memory of vLLM engines and scorers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mmprm.planning.memory import Precision, forward_only, key_value_bytes
from mmprm.planning.parts import GIB, Parts
from mmprm.planning.shapes import Shape, Tower
from mmprm.sampling.arguments import batched_tokens

Dtype = Literal["float32", "bfloat16", "float16"]

CONTEXT = 1.0 * GIB
"""Bytes for an engine's CUDA context, NCCL and workspace, which vLLM counts toward gpu_memory_utilization."""
CUDA_GRAPHS = 1.5 * GIB
"""Margin in bytes for a compiled engine's CUDA graphs, which vLLM also counts toward gpu_memory_utilization."""
PROFILED_FRAMES = 14
"""Maximum number of frames of the video for which vLLM reserves memory at the start."""
ASLEEP = CONTEXT + CUDA_GRAPHS
"""GPU memory, in bytes, that an engine keeps in sleep mode, which frees only the weights and the KV cache."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Holds the settings that determine an engine's memory use."""

    dtype: Dtype
    tensor_parallel: int
    utilization: float
    longest: int
    """Length in tokens of the longest sequence that the cache must hold (max_model_len)."""
    max_num_seqs: int
    kv_cache_gib: float | None = None
    max_pixels: int | None = None
    compiled: bool = True
    videos: bool = False
    """Whether the engine accepts videos."""
    audios: bool = False
    """Whether the engine accepts audio."""


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """Holds the settings that determine a scorer's memory use."""

    backend: Literal["transformers", "vllm"]
    dtype: Dtype
    batch_tokens: int
    utilization: float
    tensor_parallel: int = 1


def size_of(dtype: Dtype) -> int:
    """Return the number of bytes per element of a dtype."""
    return 4 if dtype == "float32" else 2


def engine_parts(shape: Shape, engine: EngineSettings, gpu: float) -> Parts:
    """Estimate an engine's memory per GPU by part, in bytes. `gpu` is the memory of a GPU.

    The key-value cache takes the rest of gpu_memory_utilization, unless `kv_cache_gib` sets its size.
    """
    parts = {
        "engine: weights": size_of(engine.dtype) * weights_per_gpu(shape, engine.tensor_parallel),
        "engine: activations, context": CONTEXT + _activations(shape, engine),
        "engine: CUDA graphs": CUDA_GRAPHS if engine.compiled else 0.0,
    }
    cache = max(0.0, engine.utilization * gpu - sum(parts.values()))
    if engine.kv_cache_gib is not None:
        cache = engine.kv_cache_gib * GIB
    return {**parts, "engine: key-value cache": cache}


def weights_per_gpu(shape: Shape, tensor_parallel: int) -> float:
    """Return the number of parameters on each GPU of a model that is split over `tensor_parallel` GPUs."""
    whole = sum(tower.unsplit for tower in shape.towers.values())
    return whole + (shape.total - whole) / tensor_parallel


def split_refusals(shape: Shape, tensor_parallel: int, key: str) -> list[str]:
    """Return the reason why vLLM cannot split a model over `tensor_parallel` GPUs, if there is one.

    Attention heads, the width of an MLP, and the heads of Qwen-VL's vision tower must be divisible. Key-value heads are
    either divided, or each is kept on the same number of GPUs. `key` names the setting.
    """
    layers, tower = shape.language, shape.vision
    divided = {"attention heads": layers.heads, "hidden units of an MLP": layers.intermediate}
    if tower is not None and not tower.unsplit:
        divided["attention heads of the vision tower"] = tower.layers.heads
    found = [f"divide the {count:,} {name}" for name, count in divided.items() if count % tensor_parallel]
    heads = layers.key_value_heads
    if heads % tensor_parallel and tensor_parallel % heads:
        found.append(f"divide the {heads} key-value heads, or be a multiple of {heads}")
    return [f"{key}.tensor_parallel_size={tensor_parallel} must {found[0]}"] if found else []


def engine_refusals(shape: Shape, engine: EngineSettings, parts: Parts) -> list[str]:
    """Return the reasons why vLLM would not start, such as attention heads that cannot be split or too small a
    cache."""
    refusals = split_refusals(shape, engine.tensor_parallel, "engine")
    if refusals:
        return refusals
    available, needed = parts["engine: key-value cache"], _per_token(shape, engine) * engine.longest
    if available >= needed:
        return []
    return [
        f"the key-value cache of an engine needs {needed / GIB:.1f} GiB for one sequence of {engine.longest:,} tokens, "
        f"but gets {available / GIB:.1f} GiB"
    ]


def cache_note(shape: Shape, engine: EngineSettings, parts: Parts, tokens: int) -> str:
    """Describe how many sequences of `tokens` tokens fit in an engine's cache."""
    held = int(parts["engine: key-value cache"] // _per_token(shape, engine))
    return (
        f"An engine computes in {engine.dtype}. Its cache holds {held:,} tokens: {held / tokens:,.0f} sequences of "
        f"{tokens:,} at a time, of at most {engine.max_num_seqs:,} (engine.max_num_seqs)."
    )


def scorer_parts(shape: Shape, scorer: ScorerSettings, gpu: float) -> Parts:
    """Estimate a scorer's memory per GPU by part, in bytes, during a batch of `batch_tokens` tokens.

    `gpu` is the memory of a GPU in bytes.
    """
    size, split, precision = size_of(scorer.dtype), scorer.tensor_parallel, _precision(scorer.dtype)
    forward = forward_only(shape.language, scorer.batch_tokens, precision)
    forward += max((_image(tower, scorer.batch_tokens, precision) for tower in shape.towers.values()), default=0.0)
    weights = size * weights_per_gpu(shape, split)
    parts = {"scorer: weights": weights, "scorer: activations, context": CONTEXT + forward}
    if scorer.backend == "transformers":
        return parts
    return {**parts, "scorer: key-value cache": max(0.0, scorer.utilization * gpu - sum(parts.values()))}


def scorer_refusals(shape: Shape, scorer: ScorerSettings, parts: Parts, key: str = "scorer") -> list[str]:
    """Return the reasons why vLLM would not start a scorer, such as a cache smaller than a batch.

    `key` is the path of the scorer's settings.
    """
    if scorer.backend == "transformers":
        return []
    refusals = split_refusals(shape, scorer.tensor_parallel, key)
    if refusals:
        return refusals
    available = parts["scorer: key-value cache"]
    per_token = key_value_bytes(shape.language, scorer.tensor_parallel, size_of(scorer.dtype))
    # Scoring needs a whole solution in one pass, so the cache must hold the longest one.
    needed = per_token * min(scorer.batch_tokens, shape.context)
    if available >= needed:
        return []
    return [
        f"the key-value cache of the scorer needs {needed / GIB:.1f} GiB for a batch of {scorer.batch_tokens:,} "
        f"tokens, but gets {available / GIB:.1f} GiB"
    ]


def receive_buffers(shape: Shape, engine: EngineSettings, transport: str) -> Mapping[str, float]:
    """Return the memory in bytes, by part, that each GPU of an engine needs to receive new weights.

    With nccl, vLLM receives into two packed buffers, each of 1 GiB plus at most one tensor. With ipc, it reads the
    trainer's buffer.
    """
    if transport != "nccl":
        return {}
    return {"engine: receive buffers": 2 * (GIB + size_of(engine.dtype) * shape.largest)}


def _activations(shape: Shape, engine: EngineSettings) -> float:
    """Estimate the peak memory of vLLM's profiling run: a full step, the largest image, and the logits of all
    sequences.

    Tensor parallelism is ignored, because it divides only some of these tensors.
    """
    precision = _precision(engine.dtype)
    largest = _largest_media(shape, engine)
    step = max(batched_tokens(engine.max_num_seqs), *largest.values(), 0)
    language = forward_only(shape.language, step, precision)
    tower = max((_image(shape.towers[part], tokens, precision) for part, tokens in largest.items()), default=0.0)
    # The logits of all sequences in float32, and two tensors of that size in the sampler.
    logits = 3 * 4 * engine.max_num_seqs * shape.rows
    # The logits are computed after the layers, whose memory is free again by then.
    return max(language, logits) + tower


def _largest_media(shape: Shape, engine: EngineSettings) -> dict[str, int]:
    """Return the number of tokens of the largest image or video, and of the longest recording, by tower."""
    found = {}
    if shape.vision:
        image = shape.vision.image_tokens(engine.max_pixels)
        # Two frames of a video are one image of tokens.
        found["vision"] = max(image, min(engine.longest, PROFILED_FRAMES // 2 * image)) if engine.videos else image
    if shape.audio and engine.audios:
        found["audio"] = min(engine.longest, shape.audio.largest)
    return found


def _image(tower: Tower, tokens: int, precision: Precision) -> float:
    return forward_only(tower.layers, round(tokens * tower.tokens), precision)


def _per_token(shape: Shape, engine: EngineSettings) -> float:
    return key_value_bytes(shape.language, engine.tensor_parallel, size_of(engine.dtype))


def _precision(dtype: Dtype) -> Precision:
    return "fp32" if dtype == "float32" else "bf16"
