"""Test that a sharded and offloaded reference model on two ranks gives the same log-probabilities as a
replicated one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def results(two_rank_states: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the results of both ranks for each precision."""
    return {
        precision: [json.loads((two_rank_states / f"{precision}.{rank}.json").read_text()) for rank in (0, 1)]
        for precision in ("fp32", "bf16")
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("place", ["sharded", "offloaded"])
def test_the_same_log_probabilities(results: dict[str, list[dict[str, Any]]], precision: str, place: str) -> None:
    for rank in results[precision]:
        whole, found = rank["whole"]["ref"], rank[place]["ref"]
        assert found.keys() == whole.keys()
        for position, expected_T in whole.items():
            assert np.std(expected_T) > 0.01 or len(expected_T) < 3
            np.testing.assert_allclose(found[position], expected_T, rtol=0, atol=1e-5)
    positions = [int(position) for rank in results[precision] for position in rank[place]["ref"]]
    assert sorted(set(positions)) == list(range(16))


@pytest.mark.parametrize("place", ["sharded", "offloaded"])
def test_each_rank_holds_half(results: dict[str, list[dict[str, Any]]], place: str) -> None:
    for rank in results["bf16"]:
        assert rank["whole"]["held"] == rank["whole"]["whole"]
        assert rank[place]["whole"] == rank["whole"]["whole"]
        assert rank[place]["held"] == pytest.approx(rank[place]["whole"] / 2, rel=0.01)
        assert not rank[place]["gradients"]
