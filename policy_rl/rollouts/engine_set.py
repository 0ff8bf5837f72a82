"""Start the engines of a RolloutPool, load weights into them, and replace engines that die.

Each engine is a Ray actor on one CPU core, one GPU, or one tensor-parallel group of GPUs. A replacement loads the
current weights from files. If weights are sent from GPU to GPU, there are no files, and the run ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import ray

from mmprm import actors
from mmprm.errors import EngineStoppedError, MmprmError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.dtype import engine_dtype
from mmprm.sampling.pool import REQUESTS_IN_FLIGHT, engine_resources
from policy_rl.rollouts.config import RolloutConfig
from policy_rl.rollouts.engine import RolloutEngine
from policy_rl.rollouts.episodes import EpisodeConfig
from policy_rl.rollouts.queue import Slot, Slots
from policy_rl.weights.config import WeightsConfig, transport_of
from policy_rl.weights.probe import TOLERANCE, ProbeCheck
from policy_rl.weights.transfer import Published

T = TypeVar("T")


class LostEngineError(EngineStoppedError):
    """Signals that an engine died or does not answer."""


def _irreplaceable(reason: LostEngineError) -> EngineStoppedError:
    return EngineStoppedError(
        f"{reason}; weights are sent from GPU to GPU, so a new engine cannot get the current ones; run the same "
        "command again to resume from the last checkpoint, or set weights.transport=file, with which engines are "
        "replaced during the run"
    )


async def answer_of(
    answer: Awaitable[T], what: str, timeout_seconds: float | None, *arguments: Any, silent: bool = False
) -> T:
    """Wait for an actor's result with actors.wait; raise LostEngineError if the engine died or does not answer."""
    try:
        return await actors.wait(answer, what, timeout_seconds, *arguments, silent=silent)
    except EngineStoppedError as error:
        raise LostEngineError(str(error)) from None


class EngineSet:
    """Starts engines, loads weights into them, and replaces those that die. `slots` holds their actors and load.

    For the arguments of the constructor, see `RolloutPool.start`.
    """

    probe_token_ids: tuple[int, ...]

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig,
        prompt: PromptConfig,
        config: RolloutConfig,
        weights: WeightsConfig,
        version: int,
        options: Sequence[dict[str, Any]] | None,
        episodes: EpisodeConfig | None,
    ) -> None:
        if options is None:
            engines, resources = engine_resources(engine, config.engines)
            options = [resources] * len(engines)
        else:
            engines = [engine] * len(options)
        gpu = "num_gpus" in options[0]
        self.transport = transport_of(weights, gpu, config.colocated)
        further: dict[str, Any] = {"enable_sleep_mode": True} if gpu and config.colocated else {}
        if self.transport != "file":
            further["weight_transfer_config"] = {"backend": self.transport}
        self._arguments = (sampling, prompt, further, episodes)
        self._config, self._weights = config, weights
        names = [f"engine {number} of {len(engines)}" for number in range(1, len(engines) + 1)]
        self._engines = dict(zip(names, engines, strict=True))
        self._options = dict(zip(names, options, strict=True))
        tolerance = weights.tolerance or TOLERANCE[engine_dtype(engine)]
        self._checks = {name: ProbeCheck(name, tolerance) for name in names}
        self.slots = Slots([Slot(name) for name in names], engine.max_num_seqs, version)
        self._current: Published | None = None
        self._replacing = asyncio.Lock()
        self._lost: set[str] = set()
        """Engines that were found dead outside of a request, and are replaced when the next weights are loaded."""
        self.restarts = 0
        """Number of engines that were replaced."""

    async def start(self) -> None:
        """Start all engines. Raises SamplingError if one of them does not start, after closing the others."""
        # Wait for all engines before raising, so that none is left half started.
        try:
            errors = await asyncio.gather(*map(self._fill, self.slots.all), return_exceptions=True)
        except asyncio.CancelledError:
            self.close()
            raise
        for error in errors:
            if error is not None:
                self.close()
                raise error

    def close(self) -> None:
        """Kill all engines."""
        for slot in self.slots.all:
            if slot.actor is not None:
                actors.kill(slot.actor)
                slot.actor = None

    async def load(self, published: Published) -> float:
        """Load weights into all engines, replacing dead ones; return the largest deviation from the trainer."""
        self._current = published
        return max(await asyncio.gather(*(self._load_or_replace(slot, published) for slot in self.slots.all)))

    async def replace(self, slot: Slot, lost: Any, reason: LostEngineError) -> float:
        """Replace the lost engine with a new one that has the current weights, unless another caller already did."""
        async with self._replacing:
            if self.slots.failure is not None:
                raise EngineStoppedError(self.slots.failure)
            if slot.actor is not lost:
                return 0.0
            slot.actor = None
            actors.kill(lost)
            self.restarts += 1
            try:
                self._check_replaceable(reason)
                print(f"{reason}; starting another engine in its place", file=sys.stderr)
                distance = await self._start_again(slot, reason)
            except MmprmError as error:
                self.slots.fail(str(error))
                raise
            except asyncio.CancelledError:  # the next request finds the engine dead, and replaces it
                slot.actor = lost
                self.restarts -= 1
                raise
        self.slots.fill()
        return distance

    async def tell(self, what: str, call: Callable[[Any], Awaitable[None]]) -> None:
        """Call all engines that are not known to be dead.

        An engine that dies meanwhile is replaced when the next weights are loaded. If weights are sent from GPU to GPU,
        it raises EngineStoppedError instead.
        """
        engines = (slot for slot in self.slots.all if slot.name not in self._lost)
        await asyncio.gather(*(self._tell_one(slot, what, call) for slot in engines))

    async def _fill(self, slot: Slot) -> None:
        slot.actor = await self._start_one(slot.name)

    async def _start_one(self, name: str) -> Any:
        """Start an engine with the weights of its model, and return its actor."""
        actor = ray.remote(max_concurrency=REQUESTS_IN_FLIGHT, **self._options[name])(RolloutEngine).remote()
        engine = self._engines[name]
        start = actor.start.remote(engine, *self._arguments)
        try:
            self.probe_token_ids, _ = await actors.wait(
                start,
                f"{name} to start {engine.model}",
                self._config.start_timeout_seconds,
                "raise rollouts.start_timeout_seconds if it only needs longer",
            )
        except BaseException:
            actors.kill(actor)
            raise
        return actor

    async def _load(self, name: str, actor: Any, published: Published) -> float:
        """Load the weights into one engine, and compare its log-probabilities on the probe text with the trainer's."""
        answer = await answer_of(
            actor.load.remote(published),
            f"{name} to load the {published}",
            self._weights.timeout_seconds,
            "raise weights.timeout_seconds if it only needs longer",
            TrainingError,
        )
        return self._checks[name].check(published, answer)

    async def _load_or_replace(self, slot: Slot, published: Published) -> float:
        actor = slot.actor
        try:
            return await self._load(slot.name, actor, published)
        except LostEngineError as error:
            return await self.replace(slot, actor, error)

    async def _start_again(self, slot: Slot, reason: LostEngineError) -> float:
        """Start a replacement for a lost engine, with the current weights."""
        try:
            actor = await self._start_one(slot.name)
        except MmprmError as error:  # the reserved GPUs may be gone with a lost machine
            raise EngineStoppedError(
                f"{reason}; no other engine starts in its place ({error}); run the same command again to resume from "
                "the last checkpoint on the machines that Ray then has"
            ) from error
        try:
            distance = 0.0 if self._current is None else await self._load(slot.name, actor, self._current)
        except BaseException:
            actors.kill(actor)
            raise
        self._lost.discard(slot.name)
        slot.actor = actor  # only now: the slot takes requests as soon as it has an actor
        return distance

    def _check_replaceable(self, reason: LostEngineError) -> None:
        if self.restarts > self._config.max_restarts:
            raise EngineStoppedError(
                f"{reason}; {self.restarts} engines have died in this run, more than "
                f"rollouts.max_restarts={self._config.max_restarts}; check the engine's log, and run the same command "
                "again to resume from the last checkpoint"
            )
        if self._current is not None and self._current.folder is None:
            raise _irreplaceable(reason)

    async def _tell_one(self, slot: Slot, what: str, call: Callable[[Any], Awaitable[None]]) -> None:
        limit, way_out = self._weights.timeout_seconds, "raise weights.timeout_seconds if it only needs longer"
        try:
            await answer_of(call(slot.actor), f"{slot.name} to {what}", limit, way_out)
        except LostEngineError as error:
            actors.kill(slot.actor)  # it may hang, and hold memory that the trainer needs
            if self.transport != "file":
                raise _irreplaceable(error) from None
            self._lost.add(slot.name)
            print(f"{error}; another engine starts in its place when the next weights are loaded", file=sys.stderr)
