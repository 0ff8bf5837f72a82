"""Test a thinking judge on an engine of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprm.config import build
from mmprm.errors import UnknownScoresError
from mmprm.scoring.judge_config import ThinkingJudgeConfig
from mmprm.scoring.judge_scorer import JudgeScorer
from mmprm.tiny.critiques import JUDGE, make_labeled
from mmprm.tiny.world import Mistakes
from mmprm.types import Solution

pytestmark = pytest.mark.integration


def test_chains_are_sampled_counted_and_cached(policy_folder: Path, tmp_path: Path) -> None:
    """The built-in policy solves the problem instead of judging, so no verdict may be made up."""
    engine = {"model": str(policy_folder), "kv_cache_gib": 0.1}
    judge = JUDGE | {"engine": engine, "chains": 3, "cache": str(tmp_path / "replies.sqlite")}
    config = build(ThinkingJudgeConfig, judge)
    labeled = make_labeled(4, 0, "dev", Mistakes(0.2, 0.5))
    solutions = [Solution(each.problem, each.path.steps) for each in labeled]
    scorer = JudgeScorer(config)
    try:
        first = scorer.score_each(solutions)
        assert sum(scorer.unread.values()) == 12
        sampled = scorer.chains(solutions)
    finally:
        scorer.close()
    for scores, chains in zip(first, sampled, strict=True):
        assert isinstance(scores, UnknownScoresError)
        assert scores.tokens == sum(chain.token_count for chain in chains) > 0
        assert len(chains) == 3
        assert all(isinstance(chain.verdicts, str) for chain in chains)
    assert any("<step>" in chain.text for chains in sampled for chain in chains)
    assert any(len({chain.text for chain in chains}) > 1 for chains in sampled)

    def refused(*_: object) -> None:
        raise AssertionError("all chains are in the cache")

    again = JudgeScorer(config, sampler=type("NoSampler", (), {"sample": refused})())
    try:
        assert again.chains(solutions) == sampled
    finally:
        again.close()
