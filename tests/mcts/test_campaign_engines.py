"""Test the engines of a campaign: their time, machines that join later, a full cluster, and idle workers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from dying_workers import DeadWorker, DyingWorker, engine_times

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.worker import LocalWorker
from mmprm.errors import SamplingError
from tests.mcts import scripted_campaign as scripted
from tests.mcts.scripted_campaign import PROBLEMS


def test_a_dead_engine_is_not_counted_until_it_is_replaced(problems: Path, tmp_path: Path) -> None:
    chosen = scripted.config(str(problems), str(tmp_path / "run"), workers=1)
    made: list[int] = []

    async def make(number: int) -> LocalWorker:
        made.append(number)
        if len(made) == 2:
            await asyncio.sleep(1.0)  # no engine runs in between
        kind = LocalWorker if len(made) > 1 else DyingWorker
        sampler = scripted.Sampler(scripted.write, 0.002)
        return kind(sampler, scripted.Grader(), chosen.step_format, chosen.seed, chosen.search)

    assert run_campaign(chosen, make_worker=make).workers_replaced == 1
    (session,) = engine_times(tmp_path / "run")
    assert 0 < session.engine_seconds <= session.seconds - 1.0


def test_engines_start_on_machines_that_join_later(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = scripted.config(str(problems), str(tmp_path / "run"), workers=None, trees_in_flight=2)
    made: list[int] = []

    class GrowingCluster(contextlib.nullcontext):
        count = 1

        def __init__(self, config: CampaignConfig) -> None:
            super().__init__(self)

        def capacity(self) -> int:
            return 1 if not made else 3

        def loading(self) -> int:
            return 0

        async def make(self, number: int) -> LocalWorker:
            made.append(number)
            return scripted.local_worker(chosen)

    monkeypatch.setattr("mcts.ray_worker.RayWorkers", GrowingCluster)
    monkeypatch.setattr("mcts.campaign._check", lambda *_: None)
    monkeypatch.setattr("mcts.campaign.GROWTH_SECONDS", 0.05)
    summary = run_campaign(chosen)
    assert (sorted(made), summary.workers) == ([0, 1, 2], 3)
    assert summary.problems == {"open": 0, "done": PROBLEMS, "failed": 0}
    assert "the cluster has capacity for more engines: starting 2" in capsys.readouterr().err


class FullCluster(contextlib.nullcontext):
    """Has no free machine. An engine starts only if `loading_engines` is set; otherwise the start hangs."""

    count, loading_engines = 1, 0

    def __init__(self, config: CampaignConfig) -> None:
        super().__init__(self)
        self.chosen = config

    def capacity(self) -> int:
        return 0

    def loading(self) -> int:
        return self.loading_engines

    def missing(self) -> str:
        return "a machine with 2 GPU for an engine; Ray has 0 CPUs and 0 GPUs free"

    async def make(self, number: int) -> LocalWorker:
        await asyncio.sleep(0.4 if self.loading_engines else 60)
        return scripted.local_worker(self.chosen)


@pytest.fixture
def full_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcts.ray_worker.RayWorkers", FullCluster)
    monkeypatch.setattr("mcts.campaign._check", lambda *_: None)
    monkeypatch.setattr("mcts.campaign.GROWTH_SECONDS", 0.02)


@pytest.mark.usefixtures("full_cluster")
def test_a_campaign_whose_engines_find_no_machine_ends(problems: Path, tmp_path: Path) -> None:
    chosen = scripted.config(str(problems), str(tmp_path / "run"), workers=None, start_timeout_seconds=0.2)
    with pytest.raises(
        SamplingError, match=r"^timed out after 0\.2 s waiting for a machine with 2 GPU .* 0 GPUs free; finished"
    ):
        run_campaign(chosen)


@pytest.mark.usefixtures("full_cluster")
def test_the_limit_excludes_loading(problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FullCluster, "loading_engines", 1)
    chosen = scripted.config(str(problems), str(tmp_path / "run"), workers=None, start_timeout_seconds=0.2)
    assert run_campaign(chosen).problems["done"] == PROBLEMS


def test_an_idle_worker_takes_the_problems_of_a_dead_one(problems: Path, tmp_path: Path) -> None:
    problems.write_text("".join(problems.read_text().splitlines(keepends=True)[:2]))
    chosen = scripted.config(str(problems), str(tmp_path / "run"), max_restarts=0)

    class LateDeath(DeadWorker):
        seconds = 1.0

    async def make(number: int) -> LocalWorker:
        kind = LateDeath if number == 0 else LocalWorker
        return kind(scripted.Sampler(scripted.write), scripted.Grader(), chosen.step_format, chosen.seed, chosen.search)

    assert run_campaign(chosen, make_worker=make).problems == {"open": 0, "done": 2, "failed": 0}
