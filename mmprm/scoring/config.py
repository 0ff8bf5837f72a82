"""Which PRM scores, through what, and how much at a time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmprm.client import ClientConfig
from mmprm.config import Config, PathText
from mmprm.prm.info import FormatName
from mmprm.scoring.context import TooLong


class ServerConfig(ClientConfig):
    concurrency: int = Field(16, ge=1)
    """Most requests in flight at one time, over all URLs; each holds up to 32 solutions."""
    send_paths: bool = False
    """Send the paths of pictures instead of their bytes: for a server that sees the same files and whose image_root
    lies above them."""


class ScorerConfig(Config):
    prm: PathText = ""
    """Folder of a process reward model, as `mmprm train` writes it, or a checkpoint of another family. Only with
    backend=server it stays empty."""
    format: FormatName | Literal["auto"] = "auto"
    """Family of a checkpoint without prm.json: math-shepherd, qwen, rlhflow, skywork, visualprm, trl or mm-prm; auto:
    what prm.json says."""
    backend: Literal["transformers", "vllm", "server"] = "transformers"
    """transformers: starts at once; vllm: the pooling runner, faster where much is scored; server: one or more `mmprm
    serve`. Equal within 1e-3 in float32."""
    server: ServerConfig | None = None
    """With backend=server, where it is; the other keys are the server's own then."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of weights and activations."""
    batch_tokens: int = Field(16384, ge=1)
    """Most tokens, padding included, that are computed at once. transformers computes a longer solution alone, vllm
    refuses it."""
    share_prefixes: bool = False
    """transformers: solutions of one problem that are scored together become one sequence, in which question, picture
    and shared steps stand once."""
    too_long: TooLong = "refuse"
    """A solution longer than the model reads. refuse: an error; cut: its first steps that fit, whole, are scored. It
    then has fewer scores than steps: the steps behind them were not judged."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """vllm on GPU: share of the memory for weights and cache."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """vllm on CPU: memory for the keys and values of the solutions in flight."""

    @model_validator(mode="after")
    def _one_model(self) -> ScorerConfig:
        if (self.backend == "server") != (self.server is not None):
            raise ValueError("backend=server and server.urls belong together, for example http://localhost:8100")
        if (self.backend == "server") == bool(self.prm):
            raise ValueError("set prm to the folder of a process reward model, or leave it empty with backend=server")
        return self
