"""Open the configured scorer, importing only the backend that it uses."""

from __future__ import annotations

import contextlib
from typing import Protocol

from mmprm.prm.info import JudgeInfo, PrmInfo, read_info
from mmprm.scoring.config import LocalScorerConfig, ScorerConfig
from mmprm.types import Scorer


class ClosableScorer(Scorer, Protocol):
    """Scores solutions, and releases its resources when closed."""

    def close(self) -> None:
        """Release the scorer's memory; it cannot be used afterwards."""
        ...


def open_scorer(config: LocalScorerConfig) -> ClosableScorer:
    """Load the process reward model, or connect to its server, or open the thinking judge.

    Raises CheckpointError if the folder does not contain a process reward model.
    """
    if config.judge is not None:
        from mmprm.scoring.judge_scorer import JudgeScorer

        return JudgeScorer(config.judge)
    if isinstance(config, ScorerConfig) and config.server is not None:
        from mmprm.scoring.http.remote import RemoteScorer

        return RemoteScorer(config.server)
    if config.backend == "vllm":
        from mmprm.scoring.vllm_scorer import VllmScorer

        return VllmScorer(config)
    from mmprm.scoring.transformers_scorer import TransformersScorer

    return TransformersScorer(config)


def scorer_info(config: LocalScorerConfig) -> PrmInfo:
    """Return the configured model's prm.json; a server provides only the aggregator, the evidence for choosing it, and
    the threshold.

    A thinking judge, on a server or not, has a JudgeInfo.
    """
    if config.judge is not None:
        return JudgeInfo()
    if not isinstance(config, ScorerConfig) or config.server is None:
        return read_info(config.prm, config.format)
    from mmprm.scoring.http.remote import RemoteScorer

    with contextlib.closing(RemoteScorer(config.server)) as scorer:
        served = scorer.model
    kind = JudgeInfo if served.backend == "judge" else PrmInfo
    return kind(
        aggregator=served.aggregator, aggregator_evidence=served.aggregator_evidence, threshold=served.threshold
    )
