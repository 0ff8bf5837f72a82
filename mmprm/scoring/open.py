"""Open the configured scorer; only the chosen backend is imported."""

from __future__ import annotations

import contextlib
from typing import Protocol

from mmprm.prm.info import PrmInfo, read_info
from mmprm.scoring.config import ScorerConfig
from mmprm.types import Scorer


class ClosableScorer(Scorer, Protocol):
    """A Scorer that holds resources."""

    def close(self) -> None:
        """Release the memory; the scorer cannot be used afterwards."""
        ...


def open_scorer(config: ScorerConfig) -> ClosableScorer:
    """Load the process reward model, or connect to its server. Raises CheckpointError for a folder that does not
    hold one."""
    if config.backend == "server":
        from mmprm.scoring.http.remote import RemoteScorer

        assert config.server is not None, "the configuration has looked"
        return RemoteScorer(config.server)
    if config.backend == "vllm":
        from mmprm.scoring.vllm_scorer import VllmScorer

        return VllmScorer(config)
    from mmprm.scoring.transformers_scorer import TransformersScorer

    return TransformersScorer(config)


def scorer_info(config: ScorerConfig) -> PrmInfo:
    """Return the prm.json of the configured model; from a server, only its aggregator and threshold are known."""
    if config.backend != "server":
        return read_info(config.prm, config.format)
    from mmprm.scoring.http.remote import RemoteScorer

    assert config.server is not None, "the configuration has looked"
    with contextlib.closing(RemoteScorer(config.server)) as scorer:
        served = scorer.model
    return PrmInfo(
        aggregator=served.aggregator, aggregator_evidence=served.aggregator_evidence, threshold=served.threshold
    )
