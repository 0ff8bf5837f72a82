"""Test that image features of a frozen vision tower are computed once on two ranks, with unchanged updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("stage", [2, 3])
def test_updates_with_cached_features(two_rank_states: Path, stage: int) -> None:
    calls = []
    for rank in range(2):
        results = json.loads((two_rank_states / f"features.{rank}.json").read_text())
        plain, cached = results[f"{stage} False"], results[f"{stage} True"]
        for name in ("old", "ref"):
            assert cached[name] == plain[name]
        assert cached["updates"] == plain["updates"]
        assert cached["calls"][0] < plain["calls"][0]
        assert cached["calls"][1] == 0 < plain["calls"][1]
        calls.append(cached["calls"])
    if stage == 3:
        assert calls[0] == calls[1], "the ranks gather the tower's weights together"


def test_a_prm_with_cached_features(two_rank_states: Path) -> None:
    """Rank 0 has no new image in the second step, but runs the tower together with rank 1."""
    for rank in range(2):
        results = json.loads((two_rank_states / f"features.{rank}.json").read_text())
        plain, cached = results["prm False"], results["prm True"]
        assert cached["updates"] == plain["updates"]
        assert plain["updates"][2] != plain["updates"][0]
        assert (plain["calls"], cached["calls"]) == ([1, 1, 1], [1, 1, 0])
