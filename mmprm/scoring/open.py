"""From configuration to a scorer; only the chosen backend is imported."""

from __future__ import annotations

from typing import Protocol

from mmprm.scoring.config import ScorerConfig
from mmprm.types import Scorer


class ClosableScorer(Scorer, Protocol):
    def close(self) -> None:
        """Give back the memory; the scorer cannot be used afterwards."""
        ...


def open_scorer(config: ScorerConfig) -> ClosableScorer:
    """Load the PRM. Raises CheckpointError for a folder that is none."""
    if config.backend == "vllm":
        from mmprm.scoring.vllm_scorer import VllmScorer

        return VllmScorer(config)
    from mmprm.scoring.transformers_scorer import TransformersScorer

    return TransformersScorer(config)
