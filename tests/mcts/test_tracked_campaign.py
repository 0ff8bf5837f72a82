"""Test which metrics a campaign sends to a tracker."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mcts.campaign import run_campaign
from mcts.progress import CampaignSummary
from mcts.worker import LocalWorker
from mmprm import trackers
from mmprm.errors import SetupError
from tests.mcts import scripted_campaign as scripted

Entry = tuple[int, dict[str, float]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Entry]]]:
    """Return the id and entries of each tracker run."""
    found: list[tuple[str, list[Entry]]] = []

    def open_tracker(run: Any) -> trackers.Sink:
        entries: list[Entry] = []
        found.append((run.id, entries))
        return trackers.Sink(lambda metrics, step: entries.append((step, metrics)), lambda: None)

    monkeypatch.setitem(sys.modules, "trackio", ModuleType("trackio"))
    monkeypatch.setitem(trackers.OPENERS, "trackio", open_tracker)
    return found


def annotate(problems: Path, run: Path, **values: object) -> CampaignSummary:
    chosen = scripted.config(str(problems), str(run), tracker="trackio", **values)

    async def make(number: int) -> LocalWorker:
        return scripted.local_worker(chosen)

    return run_campaign(chosen, make_worker=make)


def test_the_totals_at_the_end_are_tracked(
    problems: Path, tmp_path: Path, opened: list[tuple[str, list[Entry]]]
) -> None:
    summary = annotate(problems, tmp_path / "run")
    ((_, entries),) = opened
    step, metrics = entries[-1]
    assert step == metrics["annotate/rollouts"] == summary.rollouts
    assert metrics["annotate/problems_done"] == summary.problems["done"]
    assert metrics["annotate/labels"] == summary.labels
    assert metrics["annotate/trees_in_flight"] == 0


def test_a_missing_tracker_ends_the_campaign_before_it_starts(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"tracker=trackio needs .* `pip install trackio`"):
        annotate(problems, tmp_path / "run")
    assert not (tmp_path / "run").exists()
