"""What an engine may use, and how it draws."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, model_validator

from mmprm.client import ClientConfig
from mmprm.config import Config, PathText


class ServersConfig(ClientConfig):
    dialect: Literal["vllm", "openai"] = "vllm"
    """vllm: the assistant turn is continued and top_k and repetition_penalty are sent; openai: only the fields of
    OpenAI's own API, which cannot continue an assistant turn (use prompt.preset=previous_steps)."""
    trust_prefix: bool = False
    """Continue prefixes also on a server that does not return the prompt that it rendered (prompt_text), such as
    SGLang. Whether it continues the prefix is not checked then; one that does not gives wrong labels, unseen."""


class EngineConfig(Config):
    model: PathText
    """Folder of a Hugging Face checkpoint, or a hub id such as owner/name; with servers, the name that they serve."""
    servers: ServersConfig | None = None
    """OpenAI-compatible servers that are already running, in place of engines of this run; the keys below are theirs
    then."""
    chat_template: PathText | None = None
    """File of a chat template (Jinja) in place of the checkpoint's."""
    mode: Literal["auto", "in_process", "separate"] = "auto"
    """in_process: the engine lives in the calling process (fast to start); separate: vLLM's own processes. auto takes
    the first on CPU and the second on GPU, which is where each is faster."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Number format of weights and activations."""
    compile: bool | None = None
    """Compile the model (torch.compile): fewer seconds a token for a longer start. By default on GPU only. On CPU it
    needs a C++ compiler and pays where a small model draws for more than some minutes."""
    max_model_len: int | None = Field(None, ge=2)
    """Most tokens of prompt and completion together; by default what the checkpoint declares."""
    max_num_seqs: int = Field(256, ge=1)
    """Most completions that are computed at the same time; further ones wait."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Size of the key-value cache; by default 1 GiB on CPU, and on GPU what gpu_memory_utilization leaves."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory for weights and cache."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs of one engine."""
    block_size: int | None = Field(None, ge=16)
    """Tokens of one block of the prefix cache. Shorter shared prefixes are not reused; by default 32 on CPU, on GPU
    vLLM's choice."""
    cores: tuple[int, ...] | None = None
    """CPU cores that the engine computes on (in_process only); by default all that the process may use."""
    pictures_per_prompt: int = Field(8, ge=0)
    """Most pictures of one problem."""
    max_pixels: int | None = Field(None, ge=1)
    """Scale larger images down to this many pixels (Qwen-VL processors); by default the checkpoint's own limit."""
    min_pixels: int | None = Field(None, ge=1)
    """Scale smaller images up to this many pixels (Qwen-VL processors); by default the checkpoint's own limit."""

    @model_validator(mode="after")
    def _pixel_limits_in_order(self) -> EngineConfig:
        check_pixel_limits(self.min_pixels, self.max_pixels)
        return self

    @property
    def pixel_limits(self) -> dict[str, int]:
        return pixel_limits(self.min_pixels, self.max_pixels)


class SamplingConfig(Config):
    temperature: float = Field(1.0, ge=0)
    """0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the smallest set of tokens that holds this probability."""
    top_k: int = Field(0, ge=0)
    """Draw from the likeliest k tokens; 0 means all."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, tokens that already occurred become less likely."""
    max_tokens: int = Field(1024, ge=1)
    """Longest completion; what is cut off has finish_reason "length"."""


def pixel_limits(min_pixels: int | None, max_pixels: int | None) -> dict[str, int]:
    """Return the arguments of an image processor for the limits that are set."""
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    return {name: value for name, value in limits.items() if value is not None}


def check_pixel_limits(min_pixels: int | None, max_pixels: int | None) -> None:
    """Raise ValueError when both limits are set and no image can meet them."""
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ValueError(
            f"min_pixels={min_pixels} must not exceed max_pixels={max_pixels}: raise one or lower the other"
        )


def on_one_core(engine: EngineConfig, index: int) -> EngineConfig:
    """The engine bound to core number `index` of those that this process may use (cyclic)."""
    allowed = sorted(os.sched_getaffinity(0))
    return engine.model_copy(update={"cores": (allowed[index % len(allowed)],)})
