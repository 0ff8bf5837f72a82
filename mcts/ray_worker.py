"""Run campaign workers as Ray actors with one engine each, on one machine or a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mcts.capacity import Load
from mcts.config import CampaignConfig
from mcts.turns import TurnWorker
from mcts.worker import BufferedWorker, LocalWorker, Report, WorkerDiedError
from mmprm import actors
from mmprm.environments.episode import TurnSampler
from mmprm.environments.load import EnvironmentConfig
from mmprm.errors import MmprmError, SetupError
from mmprm.sampling.config import EngineConfig
from mmprm.types import Batch, Problem, Sampler

if TYPE_CHECKING:
    from mmprm.sampling.vllm_sampler import VllmSampler

_CLOSE_SECONDS = 10.0


class EngineActor:
    """Runs a worker with its own vLLM engine, and its grader or environments, in a Ray actor."""

    async def load(self, config: CampaignConfig, number: int, bind_core: bool) -> None:
        """Start the engine and the grader or environments.

        The constructor does not do this, because Ray reports an exception in a constructor as a dead actor.
        """
        self._opened = AsyncExitStack()
        self._worker = await self._make_worker(config, number, bind_core)
        self._opened.push_async_callback(self._worker.close)

    async def _make_worker(self, config: CampaignConfig, number: int, bind_core: bool) -> BufferedWorker:
        if config.environment is not None:
            turn_sampler, load = self.open_turn_engine(config, config.environment, bind_core)
            return TurnWorker(turn_sampler, config.environment, config.seed, config.search, load)
        from mmprm.grading.open import open_grader

        grader = await self._opened.enter_async_context(open_grader(config.grader))
        sampler, load = self.open_engine(config, number, bind_core)
        return LocalWorker(sampler, grader, config.step_format, config.seed, config.search, load)

    def open_engine(
        self, config: CampaignConfig, number: int, bind_core: bool
    ) -> tuple[Sampler, Callable[[], Load | None]]:
        """Start the vLLM engine; return (sampler, function that reads the engine's load)."""
        from mmprm.sampling.vllm_sampler import VllmSampler

        sampler = VllmSampler(_engine(config, bind_core), config.sampling, config.prompt)
        self._opened.callback(sampler.close)
        return sampler, partial(_load_of, sampler)

    def open_turn_engine(
        self, config: CampaignConfig, environment: EnvironmentConfig, bind_core: bool
    ) -> tuple[TurnSampler, Callable[[], Load | None]]:
        """Start the vLLM engine of a policy that plays episodes; see open_engine."""
        from mmprm.sampling.vllm_turns import VllmTurnSampler

        engine = _engine(config, bind_core)
        sampler = VllmTurnSampler(engine, config.sampling, config.prompt, environment)
        self._opened.callback(sampler.close)
        return sampler, partial(_load_of, sampler)

    async def start(self, problem: Problem, stored: Sequence[Batch]) -> None:
        await self._worker.start(problem, stored)

    async def collect(self, seconds: float) -> Report:
        return await self._worker.collect(seconds)

    async def close(self) -> None:
        await self._opened.aclose()


def _engine(config: CampaignConfig, bind_core: bool) -> EngineConfig:
    return config.engine.model_copy(update={"cores": "one"}) if bind_core else config.engine


def _load_of(sampler: VllmSampler) -> Load:
    stats = sampler.stats()
    return Load(stats.running, stats.waiting, stats.kv_cache_usage)


class RemoteWorker:
    """Adapts an EngineActor to the driver's Worker protocol and owns its placement group."""

    def __init__(self, actor: Any, group: PlacementGroup) -> None:
        self._actor = actor
        self._group = group

    async def load(self, config: CampaignConfig, number: int, bind_core: bool) -> None:
        await _answer(self._actor.load.remote(config, number, bind_core))

    async def start(self, problem: Problem, stored: Sequence[Batch]) -> None:
        await _answer(self._actor.start.remote(problem, stored))

    async def collect(self, seconds: float) -> Report:
        return await _answer(self._actor.collect.remote(seconds))

    async def close(self) -> None:
        try:
            with suppress(asyncio.TimeoutError, WorkerDiedError):
                await asyncio.wait_for(_answer(self._actor.close.remote()), _CLOSE_SECONDS)
        finally:
            if not actors.is_gone():
                ray.kill(self._actor)
                remove_placement_group(self._group)


class RayWorkers:
    """Creates the workers of a campaign as Ray actors.

    As a context manager, it starts Ray or joins the cluster on entry; on exit, it shuts Ray down if it started it.
    """

    actor_class: type[EngineActor] = EngineActor

    def __init__(self, config: CampaignConfig) -> None:
        self._config = config

    def __enter__(self) -> RayWorkers:
        self._own_ray = actors.connect(self._config.ray_address)
        resources = ray.cluster_resources()
        gpus_each = self._config.engine.tensor_parallel_size if resources.get("GPU") else 0
        self._bind_core = not gpus_each and self._config.engine.cores is None
        self._bundle = {"CPU": 1, "GPU": gpus_each} if gpus_each else {"CPU": 1}
        self._loading = 0
        nodes = [node for node in ray.nodes() if node["Alive"]]
        fitting = self._fitting(nodes)
        self.count = self._config.workers or fitting
        if not fitting:
            gpus = int(max(node["Resources"].get("GPU", 0) for node in nodes))
            raise SetupError(
                f"engine.tensor_parallel_size={gpus_each} must be at most {gpus}, the number of GPUs of one machine; "
                "lower it or add a larger machine to the cluster"
            )
        if self.count > fitting:
            raise SetupError(
                f"workers={self.count} must be at most {fitting}, because each takes "
                + (f"{gpus_each} GPUs" if gpus_each else "one CPU core")
                + "; lower it or leave it out"
            )
        return self

    def capacity(self) -> int:
        """Return how many engines the current machines can hold in total, or `workers` if it is set. Machines may have
        been added since the start."""
        return self._config.workers or self._fitting(actors.alive_nodes())

    def loading(self) -> int:
        """Return how many engines have been assigned a machine and are starting on it."""
        return self._loading

    def missing(self) -> str:
        """Describe what an engine needs and what the cluster has free."""
        each = " and ".join(f"{number} {name}" for name, number in self._bundle.items())
        return f"a machine with {each} for an engine; Ray has {actors.free_resources()} free"

    def _fitting(self, nodes: Sequence[dict[str, Any]]) -> int:
        kind = "GPU" if "GPU" in self._bundle else "CPU"
        each = self._bundle[kind]
        # An engine never spans two machines, so capacity is counted per machine.
        return sum(int(node["Resources"].get(kind, 0) // each) for node in nodes)

    def __exit__(self, *_: object) -> None:
        if self._own_ray:
            actors.shutdown()

    async def make(self, number: int) -> RemoteWorker:
        """Start worker `number` in its own placement group, and load its engine."""
        # A bundle is placed on one machine, so the GPUs of a tensor-parallel engine are never split across machines.
        group = placement_group([self._bundle], strategy="STRICT_PACK")
        options = {
            "num_cpus": 1,
            "num_gpus": self._bundle.get("GPU", 0),
            "max_restarts": 0,  # a restarted actor would have no engine; the driver makes a new worker instead
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group),
        }
        try:
            # Waits until the cluster has a machine with enough free resources.
            await group.ready()
            worker = RemoteWorker(ray.remote(self.actor_class).options(**options).remote(), group)
        except BaseException:
            remove_placement_group(group)
            raise
        self._loading += 1
        try:
            await worker.load(self._config, number, self._bind_core)
        except BaseException:
            await worker.close()
            raise
        finally:
            self._loading -= 1
        return worker


async def _answer(reference: Awaitable[Any]) -> Any:
    """Wait for an actor's result, and raise WorkerDiedError if the actor is lost.

    The driver reports what it is waiting for (see mcts.campaign).
    """
    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, (MmprmError, WorkerDiedError)):
            raise error.cause from error
        raise
    except RayError as error:  # the actor's process or machine is gone, or its report was lost with it
        raise WorkerDiedError(str(actors.cause_of(error))) from error
