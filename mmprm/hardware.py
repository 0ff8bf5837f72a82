"""Describe the machines that a run is meant for, which `mmprm plan` checks."""

from __future__ import annotations

from pydantic import Field, model_validator

from mmprm.config import Config


class HardwareConfig(Config):
    """Configures what `mmprm plan` assumes. A run ignores these keys, and uses the GPUs that it finds."""

    gpus: int = Field(8, ge=1)
    """Number of GPUs of all nodes together."""
    nodes: int = Field(1, ge=1)
    """Number of machines, which all have the same number of GPUs."""
    gpu_memory_gib: float = Field(79, gt=0)
    """Memory of a GPU in GiB as torch reports it: 79 for an A100 or H100 of 80 GB, 139 for an H200."""
    host_memory_gib: float | None = Field(None, gt=0)
    """CPU memory of a node in GiB; default: not checked."""
    shapes: dict[str, str] = Field({})
    """Maps a model folder that another run has not written yet to the hub id of a published model of the same shape."""

    @model_validator(mode="after")
    def _nodes_are_equal(self) -> HardwareConfig:
        if self.gpus % self.nodes:
            raise ValueError(
                f"gpus={self.gpus} must be a multiple of nodes={self.nodes}: all nodes have the same number of GPUs; "
                "set gpus="
                f"{self.gpus // self.nodes * self.nodes or self.nodes}"
            )
        return self
