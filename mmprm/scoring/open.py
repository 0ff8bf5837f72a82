"""From configuration to a scorer; only the chosen backend is imported."""

from __future__ import annotations

import contextlib
from typing import Protocol

from mmprm.prm.info import PrmInfo, read_info
from mmprm.scoring.config import ScorerConfig
from mmprm.types import Scorer


class ClosableScorer(Scorer, Protocol):
    def close(self) -> None:
        """Give back the memory; the scorer cannot be used afterwards."""
        ...


def open_scorer(config: ScorerConfig) -> ClosableScorer:
    """Load the PRM, or reach its server. Raises CheckpointError for a folder that is none."""
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
    """prm.json of the configured model; from a server what it says of aggregator and threshold."""
    if config.backend != "server":
        return read_info(config.prm, config.format)
    from mmprm.scoring.http.remote import RemoteScorer

    assert config.server is not None, "the configuration has looked"
    with contextlib.closing(RemoteScorer(config.server)) as scorer:
        served = scorer.model
    return PrmInfo(
        aggregator=served.aggregator, aggregator_evidence=served.aggregator_evidence, threshold=served.threshold
    )
