"""Define the configuration of a scorer: the process reward model, the backend and the batch size."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmprm.client import ClientConfig
from mmprm.config import Config, PathText
from mmprm.prm.info import FormatName
from mmprm.scoring.context import TooLong
from mmprm.scoring.judge_config import ThinkingJudgeConfig


class ServerConfig(ClientConfig):
    """Configures the connection to one or more servers started by `mmprm serve`."""

    concurrency: int = Field(16, ge=1)
    """Maximum number of concurrent requests over all URLs; each has up to 32 solutions."""
    send_paths: bool = False
    """Whether to send paths of images instead of their bytes. The server must have the same files below its
    image_root."""


class LocalScorerConfig(Config):
    """Configures a scorer that loads a process reward model on this machine."""

    absent: ClassVar[dict[str, str]] = {"server": "this command loads the model itself; set prm to its folder"}

    prm: PathText = ""
    """Folder of a process reward model written by `mmprm train`, or a checkpoint of another family."""
    format: FormatName | Literal["auto"] = "auto"
    """Model family of a checkpoint without prm.json: math-shepherd, qwen, rlhflow, skywork, visualprm, trl or mm-prm;
    auto reads it from prm.json."""
    backend: Literal["transformers", "vllm", "judge"] = "transformers"
    """Inference backend: transformers starts immediately; vllm uses vLLM's pooling runner, which is faster for large
    workloads. Their scores agree within 1e-3 in float32. judge: a thinking judge in place of a process reward model."""
    judge: ThinkingJudgeConfig | None = None
    """Thinking judge, for backend=judge; its configuration then replaces the other settings."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of weights and activations. auto: the checkpoint's data type on GPU, float32 on CPU. On a CPU with bf16
    instructions, bfloat16 is about twice as fast for models with a hidden size of 576 or more."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of GPUs over which to split the model (vllm only)."""
    batch_tokens: int = Field(16384, ge=1)
    """Maximum number of tokens per forward pass, including padding. A longer solution is scored alone by transformers
    and rejected by vllm."""
    share_prefixes: bool = False
    """Whether to pack solutions of a problem that are scored together into one sequence (transformers only). The
    question, images and shared steps then occur in the sequence only once."""
    too_long: TooLong = "refuse"
    """How to handle a solution longer than the model's context. refuse: raise an error; cut: score only as many of its
    first steps as fit, so that it has fewer scores than steps."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Fraction of GPU memory for weights and KV cache (vllm on GPU only)."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Size of the KV cache in GiB (vllm on CPU only)."""

    @property
    def described(self) -> str:
        """Return the folder of the process reward model, or the name of the judge's model."""
        return self.prm if self.judge is None else self.judge.engine.model

    @property
    def is_remote(self) -> bool:
        """Return whether servers run the model, so that nothing runs on this machine."""
        return self.judge is not None and self.judge.engine.servers is not None

    @model_validator(mode="after")
    def _has_a_judge(self) -> LocalScorerConfig:
        if (self.backend == "judge") != (self.judge is not None):
            raise ValueError("backend=judge and judge.engine.model must be set together; set both, or neither")
        if self.judge is not None and self.prm:
            raise ValueError(f"prm={self.prm} with backend=judge: the judge replaces it; remove one of them")
        return self

    @model_validator(mode="after")
    def _has_a_model(self) -> LocalScorerConfig:
        if not self.prm and self.backend != "judge":
            raise ValueError("prm is empty; set it to the folder of a process reward model")
        return self

    @model_validator(mode="after")
    def _splits_only_with_vllm(self) -> LocalScorerConfig:
        if self.tensor_parallel_size > 1 and self.backend == "transformers":
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size} with backend=transformers: it uses one GPU; set "
                "backend=vllm, or tensor_parallel_size=1"
            )
        return self


class ScorerConfig(LocalScorerConfig):
    """Configures a scorer whose process reward model is loaded on this machine or served by `mmprm serve`, or a
    thinking judge."""

    prm: PathText = ""
    """Folder of a process reward model written by `mmprm train`, or a checkpoint of another family. Must be empty
    with backend=server and backend=judge."""
    backend: Literal["transformers", "vllm", "server", "judge"] = "transformers"
    """Inference backend: transformers starts immediately; vllm uses vLLM's pooling runner, which is faster for large
    workloads; server uses one or more `mmprm serve` processes. Their scores agree within 1e-3 in float32. judge: a
    thinking judge in place of a process reward model."""
    server: ServerConfig | None = None
    """Connection to the servers, for backend=server; the server's configuration then replaces the other settings."""

    @property
    def described(self) -> str:
        """Return the folder of the process reward model, the name of the judge's model, or the servers."""
        return super().described if self.server is None else ", ".join(self.server.urls)

    @property
    def is_remote(self) -> bool:
        """Return whether servers run the model, so that nothing runs on this machine."""
        return self.server is not None or super().is_remote

    @model_validator(mode="after")
    def _has_a_model(self) -> ScorerConfig:
        if (self.backend == "server") != (self.server is not None):
            raise ValueError(
                "backend=server and server.urls must be set together; set both, for example "
                "server.urls=[http://localhost:8100], or neither"
            )
        if self.backend != "judge" and (self.backend == "server") == bool(self.prm):
            raise ValueError(
                "prm must be empty with backend=server, and name a folder otherwise; set prm to the folder of a "
                "process reward model, or remove it"
            )
        return self
