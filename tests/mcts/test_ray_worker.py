"""Test how Ray's errors for a lost actor are translated, and which worker an actor runs, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError

from mcts.capacity import Load
from mcts.config import CampaignConfig
from mcts.ray_worker import EngineActor, RemoteWorker
from mcts.worker import WorkerDiedError
from mmprm.environments.episode import TurnSampler
from mmprm.environments.load import EnvironmentConfig
from mmprm.problems import load_problems
from mmprm.tiny.sokoban_player import SolverPlayer
from tests.mcts import sokoban_campaign


@pytest.mark.parametrize("error", [RayActorError(), NodeDiedError("gone"), OutOfMemoryError("gone")])
async def test_an_engine_that_is_gone_is_a_dead_worker(error: RayError) -> None:
    """For an actor killed by its memory monitor, Ray raises an error other than RayActorError."""

    async def gone(seconds: float) -> None:
        raise error

    actor = SimpleNamespace(collect=SimpleNamespace(remote=gone))
    with pytest.raises(WorkerDiedError):
        await RemoteWorker(actor, SimpleNamespace()).collect(0.1)


class SolverActor(EngineActor):
    """Plays episodes with Sokoban's solver instead of an engine."""

    def open_turn_engine(
        self, config: CampaignConfig, environment: EnvironmentConfig, bind_core: bool
    ) -> tuple[TurnSampler, Callable[[], Load | None]]:
        return SolverPlayer(sokoban_campaign.MISTAKES), lambda: None


async def test_an_actor_with_an_environment_searches_episodes(tmp_path: Path) -> None:
    problems = sokoban_campaign.write_levels(tmp_path, 1)
    chosen = sokoban_campaign.small_config(problems, tmp_path / "run")
    (problem,) = load_problems(chosen.problems, episodes=True)
    actor = SolverActor()
    await actor.load(chosen, 0, bind_core=False)
    await actor.start(problem, [])
    batches = []
    while not (report := await actor.collect(1.0)).finished:
        batches += report.batches
    await actor.close()
    (finished,) = report.finished
    assert (finished.problem_id, finished.status) == ("p0", "done")
    assert sum(batch.counts.known for batch in (*batches, *report.batches)) >= chosen.search.rollouts
