"""Sample rollouts from a pool of vLLM engines, and load new policy weights into them.

Each engine is a Ray actor on one CPU core, one GPU, or one tensor-parallel group of GPUs.

    pool = await RolloutPool.start(engine, sampling, prompt)
    group = await pool.sample(problem, n, rollout_seed(run_seed, version, problem.id), version)
    await pool.load_weights(published)                # see policy_rl.weights.transfer
    await pool.sleep(); await pool.wake()             # if trainer and engines share GPUs; then load_weights
    pool.close()

Await hundreds of `sample` calls concurrently: each group goes to an engine with free capacity. If an engine dies, its
groups are resampled on another engine or on its replacement, which loads the current weights from files. If weights are
sent from GPU to GPU, there are no files, and the run ends. Log-probabilities are those of the sampling distribution:
the trainer divides its logits by the temperature and sets those of `pool.banned_token_ids` to −∞.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from mmprm import actors
from mmprm.errors import EngineStoppedError, MmprmError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.dtype import engine_dtype
from mmprm.sampling.pool import REQUESTS_IN_FLIGHT, engine_resources
from mmprm.sampling.seeds import derive_seed
from mmprm.types import Problem
from policy_rl.rollouts.config import RolloutConfig, check_sampling
from policy_rl.rollouts.engine import RolloutEngine
from policy_rl.rollouts.episodes import EpisodeConfig
from policy_rl.rollouts.queue import INTERRUPT_SECONDS, Slot, Slots
from policy_rl.types import Group, Response, ResponsePrefix
from policy_rl.weights.config import WeightsConfig, transport_of
from policy_rl.weights.probe import TOLERANCE, ProbeCheck
from policy_rl.weights.transfer import Published

T = TypeVar("T")


LOSS_CHECK_SECONDS = 5.0
"""Interval in seconds between checks of whether an engine has died while weights are sent to it."""


class RolloutPool:
    """Samples groups of responses from engines and loads new weights into them.

    Create it with `start`, and use it in the same event loop.
    """

    probe_token_ids: tuple[int, ...]
    banned_token_ids: tuple[int, ...]
    restarts: int

    @classmethod
    async def start(
        cls,
        engine: EngineConfig,
        sampling: SamplingConfig,
        prompt: PromptConfig,
        config: RolloutConfig | None = None,
        weights: WeightsConfig | None = None,
        version: int = 0,
        options: Sequence[dict[str, Any]] | None = None,
        episodes: EpisodeConfig | None = None,
    ) -> RolloutPool:
        """Start the engines with the weights of `engine.model`, labeled as `version`.

        `options`, one dict of Ray actor options per engine, come from policy_rl.placement. With `episodes`, responses
        are episodes. Raises ConfigError for
        unsupported sampling settings (see `check_sampling`), and SamplingError if an engine does not start.
        """
        check_sampling(sampling)
        config, weights = config or RolloutConfig(), weights or WeightsConfig()
        pool = cls(engine, sampling, prompt, config, weights, version, options, episodes)
        # Wait for all engines before raising, so that none is left half started.
        try:
            errors = await asyncio.gather(*map(pool._fill, pool._slots.all), return_exceptions=True)
        except asyncio.CancelledError:
            pool.close()
            raise
        for error in errors:
            if error is not None:
                pool.close()
                raise error
        return pool

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
        self._episodes = episodes
        if options is None:
            engines, resources = engine_resources(engine, config.engines)
            options = [resources] * len(engines)
        else:
            engines = [engine] * len(options)
        gpu = "num_gpus" in options[0]
        transport = transport_of(weights, gpu, config.colocated)
        self._further: dict[str, Any] = {"enable_sleep_mode": True} if gpu and config.colocated else {}
        self._transport = transport
        if transport != "file":
            self._further["weight_transfer_config"] = {"backend": transport}
        self._sampling, self._prompt, self._config, self._weights = sampling, prompt, config, weights
        names = [f"engine {number} of {len(engines)}" for number in range(1, len(engines) + 1)]
        self._engines = dict(zip(names, engines, strict=True))
        self._options = dict(zip(names, options, strict=True))
        tolerance = weights.tolerance or TOLERANCE[engine_dtype(engine)]
        self._checks = {name: ProbeCheck(name, tolerance) for name in names}
        self._slots = Slots([Slot(name) for name in names], engine.max_num_seqs, version)
        self._interruptible = 0
        """Number of requests in flight that new weights interrupt."""
        self._current: Published | None = None
        self._replacing = asyncio.Lock()
        self._lost: set[str] = set()
        """Engines that were found dead outside of a request, and are replaced when the next weights are loaded."""
        self.restarts = 0

    @property
    def version(self) -> int:
        """Return the weights version that all engines have loaded."""
        return self._slots.version

    @property
    def engines(self) -> list[Any]:
        """Return the engines' Ray actors, for transports in which the trainer calls engines directly."""
        return [slot.actor for slot in self._slots.all]

    async def sample(
        self,
        problem: Problem,
        n: int,
        seed: int,
        version: int | None,
        max_tokens: int | None = None,
        prefix: ResponsePrefix | None = None,
    ) -> Group:
        """Sample `n` responses from policy version `version`. Aborted requests have finish_reason "abort".

        Response i uses seed `seed + i`. In bfloat16, equal seeds often give other responses, because rounding depends
        on which requests share a step. `max_tokens` overrides the sampling configuration. With a prefix, the responses
        begin with its tokens, and `max_tokens` limits the tokens after it. Waits while weights are being loaded.

        Without a version, responses are sampled from whichever version the engines have. `load_weights` interrupts
        them; they then continue from their last token with the new weights (see Response.segments).

        Raises SamplingError or DataError, naming the problem, if it cannot be sampled, and EngineStoppedError if no
        engine is left. The caller must not request a version that the engines do not have.
        """
        if version is not None:
            return await self._sample(problem, n, seed, version, max_tokens, prefix)
        assert prefix is None, "a prefix is sampled from a given version"
        group = await self._sample(problem, n, seed, None, max_tokens)
        limit = max_tokens or self._sampling.max_tokens
        each = (
            self._continued(problem, response, seed + number, group.version, limit)
            for number, response in enumerate(group.responses)
        )
        return replace(group, responses=tuple(await asyncio.gather(*each)))

    async def _continued(self, problem: Problem, first: Response, seed: int, version: int, max_tokens: int) -> Response:
        """Continue an interrupted response until it ends. `version` sampled its first tokens."""
        response = first
        segments = with_segment((), version, len(response.token_ids))
        while response.finish_reason == "interrupted":
            done = len(response.token_ids)
            # The seed of the first tokens would repeat their random numbers.
            again = derive_seed(seed, problem.id, f"continued {version}", done)
            prefix = response.prefix(done) if done else None
            # Ahead of new groups, which are for later steps than the one that may wait for this response.
            group = await self._sample(problem, 1, again, None, max_tokens - done, prefix, first=True)
            (response,), version = group.responses, group.version
            segments = with_segment(segments, version, len(response.token_ids))
        return replace(response, segments=segments if len(segments) > 1 else ())

    async def _sample(
        self,
        problem: Problem,
        n: int,
        seed: int,
        version: int | None,
        max_tokens: int | None = None,
        prefix: ResponsePrefix | None = None,
        first: bool = False,
    ) -> Group:
        """Sample responses, which new weights interrupt if `version` is None. `first` puts them ahead of others."""
        settings = {"max_tokens": max_tokens, "prefix": prefix}
        settings = {name: value for name, value in settings.items() if value is not None}
        is_interruptible = version is None
        while True:
            slot = await self._slots.take(n, version, first)
            actor = slot.actor
            current = self._slots.version if version is None else version
            self._interruptible += is_interruptible
            try:
                what = f"{slot.name}: {n} responses to problem {problem.id}"
                answer = actor.sample.remote(problem, n, seed, current, **settings)
                return await _answer(answer, what, self._config.sample_timeout_seconds, silent=True)
            except _LostError as error:
                first = True
                await self._replace(slot, actor, error)
            finally:
                self._interruptible -= is_interruptible
                self._slots.give_back(slot, n)

    async def load_weights(self, published: Published) -> float:
        """Load new weights into all engines; return the largest log-probability deviation from the trainer.

        The deviation of an engine is the mean absolute difference over the tokens of the probe text, in nats. Loading
        starts when all requests for the current version are complete or interrupted; requests for the new version wait
        until it ends.

        Raises TrainingError if an engine does not load the weights within weights.timeout_seconds, or if its
        log-probabilities show that it does not use them.
        """
        async with self._slots.change_to(published.version, self._interrupt):
            self._current = published
            try:
                return max(await asyncio.gather(*(self._load_or_replace(slot, published) for slot in self._slots.all)))
            except MmprmError as error:
                self._slots.fail(str(error))
                raise

    async def _interrupt(self) -> None:
        """Interrupt the requests in flight that were sent without a version. A dead engine is found by its requests."""
        actors_here = [slot.actor for slot in self._slots.all if slot.actor is not None]
        if self._interruptible and actors_here:  # there may be none while the only engine is replaced
            asked = [asyncio.create_task(_asked(actor.interrupt.remote())) for actor in actors_here]
            await asyncio.wait(asked, timeout=INTERRUPT_SECONDS)

    async def sleep(self) -> None:
        """Put all engines to sleep: discard their weights and caches to free GPU memory for the trainer.

        A dead engine is replaced when the next weights are loaded. If weights are sent from GPU to GPU, it raises
        EngineStoppedError instead.
        """
        await self._all("fall asleep", lambda actor: actor.sleep.remote())

    async def wake(self) -> None:
        """Reallocate memory for the weights, which must then be sent. `load_weights` reallocates the caches.

        Dead engines are treated as in `sleep`.
        """
        await self._all("wake up", lambda actor: actor.wake.remote())

    async def until_lost(self) -> EngineStoppedError:
        """Wait until an engine that receives weights directly from the trainer's GPUs dies, and return the reason.

        Never returns if weights are files, because the trainer then does not need the engines.
        """
        if self._transport == "file":
            await asyncio.Event().wait()
        while True:
            checks = (_answer(slot.actor.check.remote(), slot.name, None, silent=True) for slot in self._slots.all)
            for found in await asyncio.gather(*checks, return_exceptions=True):
                if isinstance(found, EngineStoppedError):
                    return found
            await asyncio.sleep(LOSS_CHECK_SECONDS)

    def close(self) -> None:
        """Kill all engines."""
        for slot in self._slots.all:
            if slot.actor is not None:
                actors.kill(slot.actor)
                slot.actor = None

    async def _fill(self, slot: Slot) -> None:
        slot.actor = await self._start(slot.name)

    async def _start(self, name: str) -> Any:
        """Start an engine with the weights of its model, and return its actor."""
        actor = ray.remote(max_concurrency=REQUESTS_IN_FLIGHT, **self._options[name])(RolloutEngine).remote()
        engine = self._engines[name]
        start = actor.start.remote(engine, self._sampling, self._prompt, self._further, self._episodes)
        try:
            self.probe_token_ids, self.banned_token_ids = await actors.wait(
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
        answer = await _answer(
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
        except _LostError as error:
            return await self._replace(slot, actor, error)

    async def _replace(self, slot: Slot, lost: Any, reason: _LostError) -> float:
        """Replace the lost engine with a new one that has the current weights, unless another caller already did."""
        async with self._replacing:
            if self._slots.failure is not None:
                raise EngineStoppedError(self._slots.failure)
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
                self._slots.fail(str(error))
                raise
            except asyncio.CancelledError:  # the next request finds the engine dead, and replaces it
                slot.actor = lost
                self.restarts -= 1
                raise
        self._slots.fill()
        return distance

    async def _start_again(self, slot: Slot, reason: _LostError) -> float:
        """Start a replacement for a lost engine, with the current weights."""
        try:
            actor = await self._start(slot.name)
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

    def _check_replaceable(self, reason: _LostError) -> None:
        if self.restarts > self._config.max_restarts:
            raise EngineStoppedError(
                f"{reason}; {self.restarts} engines have died in this run, more than "
                f"rollouts.max_restarts={self._config.max_restarts}; check the engine's log, and run the same command "
                "again to resume from the last checkpoint"
            )
        if self._current is not None and self._current.folder is None:
            raise _irreplaceable(reason)

    async def _all(self, what: str, call: Callable[[Any], Awaitable[None]]) -> None:
        await asyncio.gather(*(self._tell(slot, what, call) for slot in self._slots.all if slot.name not in self._lost))

    async def _tell(self, slot: Slot, what: str, call: Callable[[Any], Awaitable[None]]) -> None:
        limit, way_out = self._weights.timeout_seconds, "raise weights.timeout_seconds if it only needs longer"
        try:
            await _answer(call(slot.actor), f"{slot.name} to {what}", limit, way_out)
        except _LostError as error:
            actors.kill(slot.actor)  # it may hang, and hold memory that the trainer needs
            if self._transport != "file":
                raise _irreplaceable(error) from None
            self._lost.add(slot.name)
            print(f"{error}; another engine starts in its place when the next weights are loaded", file=sys.stderr)


def with_segment(segments: tuple[tuple[int, int], ...], version: int, end: int) -> tuple[tuple[int, int], ...]:
    """Extend the segments of a response to `end` tokens, the last of which were sampled by `version`."""
    tokens = end - sum(count for _, count in segments)
    if tokens and segments and segments[-1][0] == version:
        return (*segments[:-1], (version, segments[-1][1] + tokens))
    return (*segments, (version, tokens)) if tokens else segments


class _LostError(EngineStoppedError):
    """Signals that an engine died or does not answer."""


def _irreplaceable(reason: _LostError) -> EngineStoppedError:
    return EngineStoppedError(
        f"{reason}; weights are sent from GPU to GPU, so a new engine cannot get the current ones; run the same "
        "command again to resume from the last checkpoint, or set weights.transport=file, with which engines are "
        "replaced during the run"
    )


async def _asked(answer: Awaitable[None]) -> None:
    with suppress(RayError, MmprmError):
        await answer


async def _answer(
    answer: Awaitable[T], what: str, timeout_seconds: float | None, *arguments: Any, silent: bool = False
) -> T:
    """Wait for an actor's result with actors.wait; raise _LostError if the engine died or does not answer."""
    try:
        return await actors.wait(answer, what, timeout_seconds, *arguments, silent=silent)
    except EngineStoppedError as error:
        raise _LostError(str(error)) from None
