"""Distribute sampling over several engines, each in a Ray actor, on one machine or on a cluster."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import astuple

import ray
from ray.exceptions import RayError

from mmprm import actors
from mmprm.errors import SetupError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig, on_one_core
from mmprm.sampling.engines import EngineStats
from mmprm.types import Completion, SampleRequest

REQUESTS_IN_FLIGHT = 10_000


class SamplerPool:
    """Distributes requests over `size` engines; all requests for a problem go to the engine that caches its prefixes.

    By default, there is one engine per GPU (or per group of tensor_parallel_size GPUs). Machines without a GPU get one
    engine per CPU core, pinned to it. Starts Ray if it is not running. Raises SamplingError if an engine does not
    start; with `wait=False`, `started` raises it instead.
    """

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig | None = None,
        prompt: PromptConfig | None = None,
        size: int | None = None,
        wait: bool = True,
    ) -> None:
        engines, resources = engine_resources(engine, size)
        actor_class = ray.remote(max_concurrency=REQUESTS_IN_FLIGHT, **resources)(_Engine)
        self._actors = [actor_class.remote() for _ in engines]
        pairs = zip(self._actors, engines, strict=True)
        self._starts = [actor.start.remote(each, sampling, prompt) for actor, each in pairs]
        self._model = engine.model
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
        """Return statistics summed over the engines, except kv_cache_usage, which is averaged."""
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
        actors.wait_all(self._starts, lambda: f"{engines} to start; Ray has {actors.free_resources()} free")


class _Engine:
    """Runs a sampler in a Ray actor.

    The sampler is created by a method, not the constructor, because Ray preserves exceptions of methods.
    """

    async def start(self, engine: EngineConfig, sampling: SamplingConfig | None, prompt: PromptConfig | None) -> None:
        from mmprm.sampling.vllm_sampler import VllmSampler

        self._sampler = VllmSampler(engine, sampling, prompt)

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        return await self._sampler.sample(request)

    async def stats(self) -> EngineStats:
        return self._sampler.stats()


def engine_resources(engine: EngineConfig, size: int | None) -> tuple[list[EngineConfig], dict[str, float]]:
    """Return each engine's configuration and the Ray resources per engine; `size` defaults to as many as fit.

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
    return [on_one_core(engine, index) for index in range(size)], {"num_cpus": 1}
