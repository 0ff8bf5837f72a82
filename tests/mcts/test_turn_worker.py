"""Test the worker that searches episodes: the load that it reports."""

from __future__ import annotations

import asyncio

from mcts.capacity import Load
from mcts.search import SearchConfig
from mcts.turns import TurnWorker
from mmprm.environments.episode import Action, TurnRequest
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.load import EnvironmentConfig
from mmprm.types import Problem


class OneTurn:
    """Ends with success after any turn."""

    def reset(self, problem: Problem, seed: int) -> Observation:
        return Observation(("Go.",))

    def step(self, text: str) -> Transition:
        return Transition(Observation(("Done.",)), 1.0, True)

    def close(self) -> None: ...


class Held:
    """Answers no request until it is released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def act(self, request: TurnRequest) -> Action:
        await self.released.wait()
        return Action("go")


async def test_episodes_that_wait_for_an_environment_are_load() -> None:
    """One of six episodes is played; the other five wait, in addition to the engine's two completions."""
    player = Held()
    environment = EnvironmentConfig(path=f"{__name__}:OneTurn", max_environments=1)
    worker = TurnWorker(player, environment, 7, SearchConfig(rollouts=6), lambda: Load(1, 2, 0.5))
    await worker.start(Problem("p", "?", ""), [])
    assert (await worker.collect(0.2)).load == Load(1, 7, 0.5)
    player.released.set()
    report = await worker.collect(10)
    assert ([end.reason for end in report.finished], report.load) == (["too easy"], Load(1, 2, 0.5))
    await worker.close()
