"""Define the trainer interface that the RL loop uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from policy_rl.types import TrainingSample


class TrainerLike(Protocol):
    """Defines the TrainerGroup methods that the RL loop calls."""

    def log_probs(self, samples: Sequence[TrainingSample], reference_only: bool = False) -> list[TrainingSample]:
        """Return copies of the samples with the log-probabilities and values that the update needs."""
        ...

    def update(self, samples: Sequence[TrainingSample], progress: float | None = None) -> dict[str, float]:
        """Perform one optimizer step and return its metrics."""
        ...

    def publish(self, version: int, probe_token_ids: Sequence[int], dtype: torch.dtype) -> Any:
        """Send the weights to the engines, or store them for the engines to load."""
        ...

    def release_memory(self) -> None:
        """Free cached GPU memory for colocated engines. Called only if engines share the trainer's GPUs."""
        ...

    def save(self, folder: Path, extra: dict[str, Any], keep: int) -> None:
        """Write a checkpoint that includes `extra`, and delete all but the `keep` newest checkpoints."""
        ...

    def resume(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest checkpoint and return its `extra`, or None if there is no checkpoint."""
        ...

    def abandon(self, reason: str) -> None:
        """Kill all ranks, even during a call from another thread, which then raises an error."""
        ...

    def save_model(self, folder: Path) -> None:
        """Save the policy as a Hugging Face model folder."""
        ...
