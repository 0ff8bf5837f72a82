"""Define the configurations of the vLLM engine, of servers that replace it, and of sampling."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmprm.client import ClientConfig
from mmprm.config import Config, PathText

START_TIMEOUT_SECONDS = 1800.0
"""Default of start_timeout_seconds: maximum time in seconds to wait for machines on which engines can start."""


class ServersConfig(ClientConfig):
    """Configures the OpenAI-compatible servers that run the policy."""

    dialect: Literal["vllm", "openai"] = "vllm"
    """API dialect. vllm: continue the assistant turn, and send top_k and repetition_penalty. openai: send only the
    fields of OpenAI's own API, which cannot continue an assistant turn (use prompt.preset=previous_steps).
    """
    trust_prefix: bool = False
    """Continue prefixes even on servers that do not return the rendered prompt (prompt_text), such as SGLang. The
    continuation is then not verified, and a server that does not continue the prefix silently yields incorrect labels.
    """


class LocalEngineConfig(Config):
    """Configures a vLLM engine that the run starts itself: model, memory, parallelism and image limits."""

    absent: ClassVar[dict[str, str]] = {
        "servers": "this command loads new weights into its engines, which servers do not allow; remove the key",
        "cores": "this command assigns CPU cores to its engines itself; remove the key",
    }

    model: PathText
    """Folder of a Hugging Face checkpoint, or a hub id such as owner/name."""
    chat_template: PathText | None = None
    """Chat template file (Jinja) that replaces the checkpoint's template."""
    mode: Literal["auto", "in_process", "separate"] = "auto"
    """Where to run the engine. in_process: in the calling process (fast to start); separate: in vLLM's own processes.
    auto selects the faster mode: in_process on CPU, separate on GPU.
    """
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of weights and activations. auto: bfloat16 on devices with bf16 instructions, float16 on other GPUs,
    and float32 on other CPUs, except that models with a hidden size below 576 run in bfloat16 on CPUs with AVX-512. A
    resumed run keeps its data type.
    """
    compile: bool | None = None
    """Whether to compile the model with torch.compile, for faster generation but a slower start. Default: on GPU only.
    On CPU, it needs a C++ compiler and pays off only if a small model samples for more than a few minutes.
    """
    max_model_len: int | None = Field(None, ge=2)
    """Maximum total number of prompt and completion tokens; default: the checkpoint's limit."""
    max_num_seqs: int = Field(256, ge=1)
    """Maximum number of completions generated concurrently; further ones wait."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Size of the KV cache in GiB. Default: 1 on CPU; on GPU, the memory that gpu_memory_utilization leaves."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Fraction of GPU memory used for weights and KV cache."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of GPUs per engine."""
    block_size: int | None = Field(None, ge=16)
    """Number of tokens per block of the prefix cache. Shared prefixes shorter than a block are not reused. Default: 32
    on CPU; on GPU, vLLM's default.
    """
    images_per_prompt: int = Field(8, ge=0)
    """Maximum number of images per problem."""
    videos_per_prompt: int = Field(0, ge=0)
    """Maximum number of videos per problem, for Qwen2.5-Omni models."""
    audios_per_prompt: int = Field(0, ge=0)
    """Maximum number of audio recordings per problem, for Qwen2.5-Omni models. The audio track of a video counts too.
    """
    max_pixels: int | None = Field(None, ge=1)
    """Maximum number of pixels per image or video frame; larger ones are scaled down. For Qwen-VL and Qwen2.5-Omni
    processors; default: the processor's own limit."""
    min_pixels: int | None = Field(None, ge=1)
    """Minimum number of pixels per image or video frame; smaller ones are scaled up. For Qwen-VL and Qwen2.5-Omni
    processors; default: the processor's own limit, which is 100,352 for the frames of Qwen2.5-Omni."""

    @model_validator(mode="after")
    def _pixel_limits_in_order(self) -> LocalEngineConfig:
        check_pixel_limits(self.min_pixels, self.max_pixels)
        return self

    @property
    def pixel_limits(self) -> dict[str, int]:
        """Return the image processor's arguments for the configured pixel limits."""
        return pixel_limits(self.min_pixels, self.max_pixels)


class EngineConfig(LocalEngineConfig):
    """Configures a vLLM engine, or the servers that replace it."""

    model: PathText
    """Folder of a Hugging Face checkpoint, or a hub id such as owner/name; with servers, the served model's name."""
    servers: ServersConfig | None = None
    """OpenAI-compatible servers to use instead of local engines. They must already be running, and they determine the
    other settings of this group.
    """
    cores: tuple[int, ...] | Literal["one"] | None = None
    """CPU cores to pin the engine to (in_process only); default: all cores that are available to the process. Default
    on machines without a GPU: one if the command starts an engine per core, otherwise all available cores."""


class WholeDistributionConfig(Config):
    """Configures sampling from the policy's full distribution: no top-p, top-k or repetition penalty."""

    absent: ClassVar[dict[str, str]] = dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty"),
        "the ratio of new to old probabilities needs the full distribution; remove the key",
    )

    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 selects the most likely token."""
    max_tokens: int = Field(1024, ge=1)
    """Maximum number of tokens per completion; a completion cut off at this limit has finish_reason "length"."""


class SamplingConfig(WholeDistributionConfig):
    """Configures sampling, including top-p, top-k and the repetition penalty."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose total probability reaches this value."""
    top_k: int = Field(0, ge=0)
    """Sample from the k most likely tokens; 0 means all."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Repetition penalty; values above 1 make tokens that have already occurred less likely."""


def pixel_limits(min_pixels: int | None, max_pixels: int | None) -> dict[str, int]:
    """Return the image processor's arguments for the limits that are set."""
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    return {name: value for name, value in limits.items() if value is not None}


def check_pixel_limits(min_pixels: int | None, max_pixels: int | None) -> None:
    """Raise ValueError if both limits are set and the minimum exceeds the maximum."""
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ValueError(
            f"min_pixels={min_pixels} must not exceed max_pixels={max_pixels}; lower the former or raise the latter"
        )


def engine_of(config: LocalEngineConfig) -> EngineConfig:
    """Convert local engine settings to an EngineConfig without servers."""
    return EngineConfig(**config.model_dump())


def sampling_of(config: WholeDistributionConfig) -> SamplingConfig:
    """Convert to a SamplingConfig with the same settings and no top-p, top-k or repetition penalty."""
    return SamplingConfig(**config.model_dump())


def on_one_core(engine: EngineConfig, index: int) -> EngineConfig:
    """Return the configuration with the engine pinned to one CPU core, chosen by `index` modulo the number of available
    cores."""
    allowed = sorted(os.sched_getaffinity(0))
    return engine.model_copy(update={"cores": (allowed[index % len(allowed)],)})
