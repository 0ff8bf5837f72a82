"""Define the hardware configuration for `mmprm plan`."""

from __future__ import annotations

from pydantic import Field, model_validator

from mmprm.config import Config


class HardwareConfig(Config):
    """Configures the hardware that `mmprm plan` assumes. Runs ignore these keys and use the GPUs they find."""

    gpus: int = Field(8, ge=1)
    """Total number of GPUs across all nodes."""
    nodes: int = Field(1, ge=1)
    """Number of machines, each with the same number of GPUs."""
    gpu_memory_gib: float = Field(79, gt=0)
    """Memory per GPU in GiB, as reported by torch: 79 for an A100 or H100 with 80 GB, 139 for an H200."""
    host_memory_gib: float | None = Field(None, gt=0)
    """CPU memory per node in GiB; not checked by default."""
    shapes: dict[str, str] = Field({})
    """Maps a model folder that does not exist yet to the hub id of a published model with the same shape."""

    @model_validator(mode="after")
    def _nodes_are_equal(self) -> HardwareConfig:
        if self.gpus % self.nodes:
            raise ValueError(
                f"gpus={self.gpus} must be a multiple of nodes={self.nodes}: all nodes have the same number of GPUs; "
                f"set gpus={-(-self.gpus // self.nodes) * self.nodes}"
            )
        return self
