"""Distribute sampling over several engines, each in a Ray actor, on one machine or on a cluster."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import astuple

import ray
from ray.exceptions import RayError

from mmprm import actors
from mmprm.errors import SamplingError, SetupError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import START_TIMEOUT_SECONDS, EngineConfig, SamplingConfig
from mmprm.sampling.engines import EngineStats
from mmprm.types import Completion, SampleRequest

REQUESTS_IN_FLIGHT = 10_000


class SamplerPool:
    """Distributes sampling requests over `size` engines. All requests for a problem go to one engine, which caches the
    problem's prefixes.

    By default, there is one engine per GPU (or per group of tensor_parallel_size GPUs). Machines without a GPU get one
    engine per CPU core, pinned to it. Starts Ray if it is not running. Raises SamplingError if an engine does not
    start, or finds no machine with free resources within `start_timeout_seconds`; with `wait=False`, `started` raises
    it instead.
    """

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig | None = None,
        prompt: PromptConfig | None = None,
        size: int | None = None,
        wait: bool = True,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
    ) -> None:
        engines, resources = engine_resources(engine, size)
        actor_class = ray.remote(max_concurrency=REQUESTS_IN_FLIGHT, **resources)(_Engine)
        self._actors = [actor_class.remote() for _ in engines]
        self._placements = [actor.is_placed.remote() for actor in self._actors]
        pairs = zip(self._actors, engines, strict=True)
        self._starts = [actor.start.remote(each, sampling, prompt) for actor, each in pairs]
        self._model, self._resources, self._start_timeout_seconds = engine.model, resources, start_timeout_seconds
        if wait:
            try:
                self._wait()
            except BaseException:
                self.close()
                raise

    async def started(self) -> None:
        """Wait until all engines are running.

        If cancelled, for example by Ctrl-C, it closes them, which also ends the wait in the thread.
        """
        try:
            await asyncio.to_thread(self._wait)
        except BaseException:
            self.close()
            raise

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return the completions of a request; see types.Sampler.

        Errors raised in the engine's actor are raised again here.
        """
        actor = self._actors[zlib.crc32(request.problem.id.encode()) % len(self._actors)]
        try:
            return await actor.sample.remote(request)
        except RayError as error:
            raise actors.cause_of(error) from None

    async def stats(self) -> EngineStats:
        """Return statistics summed over the engines, except kv_cache_usage, which is their average."""
        all_stats = await asyncio.gather(*(actor.stats.remote() for actor in self._actors))
        *sums, usage = (sum(column) for column in zip(*map(astuple, all_stats), strict=True))
        return EngineStats(*sums, usage / len(all_stats))

    def close(self) -> None:
        """Stop the engines."""
        for actor in self._actors:
            actors.kill(actor)

    def _wait(self) -> None:
        count = len(self._starts)
        engines = f"{count} engine{'s' if count > 1 else ''} of {self._model}"
        each = ", ".join(f"{number:g} × {name[4:-1].upper()}" for name, number in self._resources.items())
        actors.wait_all(
            self._placements,
            lambda: f"machines for {engines} ({each} each); Ray has {actors.free_resources()} free",
            self._start_timeout_seconds,
            "add machines to the cluster, end what occupies them, set fewer workers, or raise start_timeout_seconds",
            SamplingError,
        )
        actors.wait_all(self._starts, f"{engines} to start")


class _Engine:
    """Runs one sampler in a Ray actor.

    The sampler is created by a method, not the constructor, because Ray preserves exceptions of methods.
    """

    async def is_placed(self) -> bool:
        """Return as soon as Ray has placed this actor on a machine."""
        return True

    async def start(self, engine: EngineConfig, sampling: SamplingConfig | None, prompt: PromptConfig | None) -> None:
        from mmprm.sampling.vllm_sampler import VllmSampler

        self._sampler = VllmSampler(engine, sampling, prompt)

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        return await self._sampler.sample(request)

    async def stats(self) -> EngineStats:
        return self._sampler.stats()


def engine_resources(engine: EngineConfig, size: int | None) -> tuple[list[EngineConfig], dict[str, float]]:
    """Return the configuration of each engine and the Ray resources that one engine needs. `size` defaults to as many
    as fit.

    Starts Ray if it is not running.
    """
    actors.connect()
    gpus = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    if any(gpus):
        each = engine.tensor_parallel_size
        size = size or sum(count // each for count in gpus)  # an engine's GPUs are on one machine
        if not size:
            raise SetupError(
                f"engine.tensor_parallel_size={each} must be at most {max(gpus)}, the number of GPUs of one machine; "
                "lower it, or join a cluster with larger machines"
            )
        return [engine] * size, {"num_gpus": each}
    size = size or int(ray.cluster_resources()["CPU"])
    # Cores are selected where the engine starts, which may be another machine.
    cores = engine.cores or "one"
    return [engine.model_copy(update={"cores": cores})] * size, {"num_cpus": 1}
