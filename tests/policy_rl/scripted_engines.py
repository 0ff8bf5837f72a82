"""Simulate the actors of a RolloutPool, without engines, as a script tells them to answer, to wait or to die."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError

from mmprm.errors import SamplingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.types import Problem
from policy_rl.rollouts.config import RolloutConfig
from policy_rl.rollouts.pool import RolloutPool
from policy_rl.types import Group, Response
from policy_rl.weights.config import WeightsConfig
from policy_rl.weights.transfer import Published

PROBE = (-1.0, -2.0)


def published(version: int) -> Published:
    return Published(version, 1, 4, "/folder", tuple(value - version / 10 for value in PROBE))


class Script:
    """Holds the state shared by all actors of a test."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.options: list[dict] = []
        """Of each actor, by order."""
        self.further: list[dict] = []
        self.settings: list[dict] = []
        """Of each request, by order."""
        self.dies: set[int] = set()
        """Actors, by order of their start, that are dead as soon as they are asked for a rollout."""
        self.lost_from: int | None = None
        """Actors, by order, from this one on do not start: their machine is lost."""
        self.silent = False
        self.dead: set[int] = set()
        """Actors, by order of their start, whose process has ended."""
        self.delay = 0.01
        self.start_delay = self.load_delay = 0.0
        self.bad_probe = False


class Actor:
    def __init__(self, script: Script) -> None:
        self.script, self.number = script, len(script.actors)
        script.actors.append(self)
        self.in_flight = self.most = 0
        self.loaded: list[int] = []
        self.folders: list[str | None] = []
        self.during_load: list[int] = []
        self.killed = False
        for name in ("start", "sample", "load", "sleep", "wake", "check"):
            method = getattr(self, f"_{name}")
            setattr(self, name, SimpleNamespace(remote=method))

    async def _start(self, engine, sampling, prompt, further, episodes):
        self.script.further.append(further)
        if self.script.lost_from is not None and self.number >= self.script.lost_from:
            raise RayActorError
        await asyncio.sleep(self.script.start_delay)
        return (1, 2, 3), (9,)

    async def _sample(self, problem: Problem, n: int, seed: int, version: int, **settings: Any) -> Group:
        self.script.settings.append(settings)
        if problem.id == "bad":
            raise SamplingError("problem bad: too long")
        self.in_flight += n
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0 if self.number in self.script.dies else self.script.delay)
        self.in_flight -= n
        if self.number in self.script.dies:
            raise RayActorError
        answer = Response(f"{problem.id} {seed} {self.loaded}", (1,), (0.0,), "stop")
        return Group(problem, (answer,) * n, version, 5)

    async def _sleep(self) -> None:
        if self.number in self.script.dead:
            raise RayActorError

    _wake = _check = _sleep

    async def _load(self, published: Published) -> tuple[float, ...]:
        await self._sleep()
        self.during_load.append(self.in_flight)
        if self.script.silent:
            await asyncio.sleep(60)
        await asyncio.sleep(self.script.delay + self.script.load_delay)
        self.loaded.append(published.version)
        self.folders.append(published.folder)
        return PROBE if self.script.bad_probe else published.probe


async def start(max_restarts: int = 3, **weights) -> RolloutPool:
    engine = EngineConfig(model="m", max_num_seqs=16, dtype="float32")
    config = RolloutConfig(engines=2, max_restarts=max_restarts)
    return await RolloutPool.start(engine, SamplingConfig(), PromptConfig(), config, WeightsConfig(**weights))


GPU_PLACES = [{"num_gpus": 0, "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": str(gpu)}}} for gpu in range(2)]


async def start_on_gpus(colocated: bool = False, **engine) -> RolloutPool:
    settings = EngineConfig(model="m", max_num_seqs=16, dtype="float32", **engine)
    config = RolloutConfig(colocated=colocated)
    return await RolloutPool.start(settings, SamplingConfig(), PromptConfig(), config, options=GPU_PLACES)


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{number}", "?", "1") for number in range(count)]


async def ask(pool: RolloutPool, count: int, n: int = 8) -> list[Group]:
    return await asyncio.gather(*(pool.sample(problem, n, 1, pool.version) for problem in problems(count)))
