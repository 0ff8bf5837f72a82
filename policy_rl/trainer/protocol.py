"""Define what the loop needs from a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from policy_rl.types import TrainingSample


class TrainerLike(Protocol):
    """Describe the part of TrainerGroup that a run needs."""

    def log_probs(self, samples: Sequence[TrainingSample], reference_only: bool = False) -> list[TrainingSample]:
        """Return the samples with the log-probabilities and values that the update needs."""
        ...

    def update(self, samples: Sequence[TrainingSample], progress: float | None = None) -> dict[str, float]:
        """Perform one optimizer step; return its metrics."""
        ...

    def publish(self, version: int, probe_token_ids: Sequence[int], dtype: torch.dtype) -> Any:
        """Send the weights to the engines, or store them for the engines to load."""
        ...

    def release_memory(self) -> None:
        """Return unused GPU memory to engines on the same GPUs; called only if there are any."""
        ...

    def save(self, folder: Path, extra: dict[str, Any], keep: int) -> None:
        """Write a checkpoint with `extra`, and keep the `keep` newest ones."""
        ...

    def resume(self, folder: Path) -> dict[str, Any] | None:
        """Restore the newest checkpoint and return its `extra`, or None without a checkpoint."""
        ...

    def save_model(self, folder: Path) -> None:
        """Save the policy as a model folder."""
        ...
