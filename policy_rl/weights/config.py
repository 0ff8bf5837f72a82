"""Define the configuration of weight transfer from the trainer to the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmprm.config import Config, PathText
from mmprm.errors import ConfigError


class WeightsConfig(Config):
    """Configures the transfer of new weights from the trainer to the engines."""

    transport: Literal["auto", "file", "nccl", "ipc"] = "auto"
    """Transport of the weights. file: safetensors files in shared memory or a shared folder; nccl: vLLM's broadcast
    from GPU to GPU; ipc: vLLM's transfer between trainer and engine on the same GPU. auto: file on CPU and with
    max_staleness; otherwise on GPU, ipc for colocated engines and nccl for others. Dead engines are replaced only with
    file."""
    folder: PathText | None = None
    """With transport=file, the parent folder of this run's weight files. By default /dev/shm, or the run folder if
    /dev/shm is not writable. It needs space for two versions of the weights, and all machines of the run must have
    access to it."""
    timeout_seconds: float = Field(600, gt=0)
    """Maximum time in seconds to wait for an engine to load new weights."""
    tolerance: float | None = Field(None, gt=0)
    """Maximum mean absolute difference (nats) between the log-probabilities of engine and trainer on a probe text after
    a transfer. Defaults: 0.01 for float32 engines, 0.05 for float16, 0.15 for bfloat16."""


def transport_of(config: WeightsConfig, gpu: bool, colocated: bool) -> Literal["file", "nccl", "ipc"]:
    """Resolve `weights.transport`, replacing auto with file, nccl or ipc.

    Raises ConfigError for a transport that cannot reach the engines.
    """
    of_gpus = "ipc" if colocated else "nccl"
    if not gpu and config.transport not in ("auto", "file"):
        raise ConfigError(f"weights.transport={config.transport} needs GPUs, but this run has none; use auto or file")
    if config.transport == "auto":
        return of_gpus if gpu else "file"
    if gpu and config.transport not in ("file", of_gpus):
        where = "on the trainer's GPUs" if colocated else "on GPUs of their own"
        raise ConfigError(f"weights.transport={config.transport} does not reach engines {where}; use {of_gpus} or file")
    return config.transport
