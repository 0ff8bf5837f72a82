"""Rollouts from several engines whose weights change: a Ray actor each, one a core, or one a GPU or group of GPUs.

    pool = await RolloutPool.start(engine, sampling, prompt)
    group = await pool.sample(problem, n, rollout_seed(run_seed, version, problem.id), version)
    await pool.load_weights(published)                # see policy_rl.weights
    await pool.sleep(); await pool.wake()             # trainer and engines on the same GPUs
    pool.close()

Await hundreds of `sample` at once; groups go to whichever engine has room, and those of an engine that dies are asked
again of another, or of its replacement, which gets the current weights. Log-probabilities are those of the distribution
that was drawn from: the trainer divides its logits by the temperature and sets those of `pool.banned_token_ids` to −∞.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import ray
from pydantic import Field
from ray.exceptions import RayActorError, RayTaskError

from mmprm.config import Config
from mmprm.errors import ConfigError, EngineStoppedError, MmprmError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.engines import EngineStats
from mmprm.sampling.pool import NOTICE_SECONDS, REQUESTS_IN_FLIGHT, cause_of, places
from mmprm.sampling.seeds import derive_seed
from mmprm.types import Problem
from policy_rl.rollout_actor import RolloutEngine
from policy_rl.types import Group
from policy_rl.weights import TOLERANCE, ProbeCheck, Published, WeightsConfig

T = TypeVar("T")


class RolloutConfig(Config):
    engines: int | None = Field(None, ge=1)
    """Engines; by default one a core, or one a GPU (or group of tensor_parallel_size GPUs)."""
    colocated: bool = False
    """Engines share their GPUs with the trainer, and sleep while it works."""
    gpu_share: float = Field(1.0, gt=0, le=1)
    """Share of a GPU that Ray books for a colocated engine; the trainer books the rest."""
    start_timeout_s: float = Field(1800, gt=0)
    """Longest wait for an engine to start."""
    sample_timeout_s: float = Field(3600, gt=0)
    """Longest wait for the responses to one problem; the engine counts as dead after it."""
    most_restarts: int = Field(3, ge=0)
    """Engines that may die in a run before it ends."""


def rollout_seed(run_seed: int, version: int, problem_id: str, attempt: int = 0) -> int:
    """Seed of the draws for a problem by the policy of `version`; `attempt` counts earlier draws of the same."""
    return derive_seed(run_seed, problem_id, f"rollout {version}", attempt)


def check_sampling(sampling: SamplingConfig) -> None:
    """ConfigError where the drawn tokens do not follow the distribution that the trainer can compute."""
    rules = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    for key, neutral in rules.items():
        if getattr(sampling, key) != neutral:
            raise ConfigError(
                f"sampling.{key}={getattr(sampling, key)} must be {neutral:g} in RL: the ratio of new to old "
                "probability is that of the whole distribution; set sampling.temperature alone"
            )
    if sampling.temperature == 0:
        raise ConfigError("sampling.temperature=0 must be above 0 in RL: a group needs different responses; try 1.0")


@dataclass(slots=True)
class _Seat:
    """The place of one engine. `actor` is None while it has none."""

    name: str
    config: EngineConfig
    check: ProbeCheck
    actor: Any = None
    responses: int = 0
    """In flight."""


class RolloutPool:
    """Made by `start`, used in that event loop. `version` is that of the weights that all engines have."""

    version: int
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
    ) -> RolloutPool:
        """Engines with the weights of `engine.model`, which count as `version`. ConfigError for a distribution that the
        trainer cannot compute, SamplingError where an engine does not start."""
        check_sampling(sampling)
        pool = cls(engine, sampling, prompt, config or RolloutConfig(), weights or WeightsConfig(), version)
        try:
            await asyncio.gather(*(pool._start(seat) for seat in pool._seats))
        except BaseException:
            pool.close()
            raise
        return pool

    def __init__(
        self,
        engine: EngineConfig,
        sampling: SamplingConfig,
        prompt: PromptConfig,
        config: RolloutConfig,
        weights: WeightsConfig,
        version: int,
    ) -> None:
        engines, resources = places(engine, config.engines)
        gpu = "num_gpus" in resources
        if gpu and config.colocated:
            resources = {"num_gpus": config.gpu_share * engine.tensor_parallel_size}
        transport = weights.transport if weights.transport != "auto" else ("nccl" if gpu else "file")
        self._further: dict[str, Any] = {"enable_sleep_mode": True} if gpu and config.colocated else {}
        if transport != "file":
            self._further["weight_transfer_config"] = {"backend": transport}
        self._actor_class = ray.remote(max_concurrency=REQUESTS_IN_FLIGHT, **resources)(RolloutEngine)
        self._engine, self._sampling, self._prompt = engine, sampling, prompt
        self._config, self._weights = config, weights
        tolerance = weights.tolerance or TOLERANCE[engine.dtype]
        names = [f"engine {number} of {len(engines)}" for number in range(1, len(engines) + 1)]
        self._seats = [
            _Seat(name, each, ProbeCheck(name, tolerance)) for name, each in zip(names, engines, strict=True)
        ]
        self._current: Published | None = None
        self._waiting: deque[tuple[int, asyncio.Future[_Seat]]] = deque()
        self._loading, self._replacing = asyncio.Lock(), asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._failure: str | None = None
        self.version, self.restarts = version, 0

    @property
    def engines(self) -> list[Any]:
        """The actors, for transports that reach engines from the trainer."""
        return [seat.actor for seat in self._seats]

    async def sample(self, problem: Problem, n: int, seed: int, version: int, max_tokens: int | None = None) -> Group:
        """`n` responses by the policy of `version`; draw i has the seed `seed + i`, so that asking again gives the same
        but for rounding; `max_tokens` stands in place of sampling's. Waits while weights are loaded. Aborted responses
        stay, with finish_reason "abort".

        SamplingError or DataError name a problem that cannot be asked; EngineStoppedError means that the engines are
        gone. A version that the engines do not have is the caller's mistake.
        """
        limit = {} if max_tokens is None else {"max_tokens": max_tokens}
        while True:
            seat = await self._take(n)
            actor = seat.actor
            try:
                assert version == self.version, f"version {version} is asked for, and the engines have {self.version}"
                what = f"{seat.name}: {n} responses to problem {problem.id}"
                answer = actor.sample.remote(problem, n, seed, version, **limit)
                return await _within(self._config.sample_timeout_s, what, answer, silent=True)
            except _LostError as error:
                await self._replace(seat, actor, error)
            finally:
                self._give_back(seat, n)

    async def load_weights(self, published: Published) -> float:
        """All engines go on with these weights, once what is in flight has ended; what is asked meanwhile waits.
        Returns the largest mean difference of an engine from the trainer's log-probabilities of the probe.

        TrainingError where an engine does not take them in within weights.timeout_s, or does not compute with them.
        """
        async with self._loading:
            await self._idle.wait()
            self._current = published
            distances = await asyncio.gather(*map(self._load_or_replace, self._seats))
            self.version = published.version
        self._dispatch()
        return max(distances)

    async def sleep(self, level: int = 1) -> None:
        """Leave the GPUs to the trainer: level 1 keeps the weights in host memory, 2 drops them, so that `load_weights`
        must follow `wake`."""
        await self._all("falling asleep", lambda actor: actor.sleep.remote(level))

    async def wake(self) -> None:
        await self._all("waking up", lambda actor: actor.wake.remote())

    async def stats(self) -> EngineStats:
        """Sums over the engines since each started; kv_cache_usage is their mean."""
        all_stats = await self._all("its statistics", lambda actor: actor.stats.remote())
        *sums, usage = (sum(column) for column in zip(*map(astuple, all_stats), strict=True))
        return EngineStats(*sums, usage / len(all_stats))

    def close(self) -> None:
        for seat in self._seats:
            if seat.actor is not None:
                ray.kill(seat.actor)
                seat.actor = None

    async def _take(self, n: int) -> _Seat:
        """The least loaded engine, as soon as one has room: groups wait here and not in an engine, so that whichever
        has room first can have them."""
        place: asyncio.Future[_Seat] = asyncio.get_running_loop().create_future()
        self._waiting.append((n, place))
        self._dispatch()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._give_back(place.result(), n)
            raise

    def _give_back(self, seat: _Seat, n: int) -> None:
        seat.responses -= n
        if not any(other.responses for other in self._seats):
            self._idle.set()
        self._dispatch()

    def _dispatch(self) -> None:
        while self._waiting and not self._loading.locked():
            n, place = self._waiting[0]
            seat = self._roomiest(n)
            if place.done():
                pass
            elif self._failure is not None:
                place.set_exception(EngineStoppedError(self._failure))
            elif seat is None:
                return
            else:
                seat.responses += n
                self._idle.clear()
                place.set_result(seat)
            self._waiting.popleft()

    def _roomiest(self, n: int) -> _Seat | None:
        alive = [seat for seat in self._seats if seat.actor is not None]
        seat = min(alive, key=lambda seat: seat.responses, default=None)
        return seat if seat and seat.responses + n <= max(n, self._engine.max_num_seqs) else None

    async def _start(self, seat: _Seat) -> None:
        actor = self._actor_class.remote()
        start = actor.start.remote(seat.config, self._sampling, self._prompt, self._further)
        try:
            what = f"{seat.name} to start {seat.config.model}"
            self.probe_token_ids, self.banned_token_ids = await _within(self._config.start_timeout_s, what, start)
        except BaseException:
            ray.kill(actor)
            raise
        seat.actor = actor

    async def _load(self, seat: _Seat) -> float:
        """The current weights, and the proof that the engine has them."""
        published = self._current
        assert published is not None, "there is something to load"
        try:
            what = f"{seat.name} to load the {published}"
            answer = await _within(self._weights.timeout_s, what, seat.actor.load.remote(published))
        except _LostError as error:
            if error.timed_out:
                raise TrainingError(f"{error}; a larger weights.timeout_s gives it more time") from error
            raise
        return seat.check.check(published, answer)

    async def _load_or_replace(self, seat: _Seat) -> float:
        actor = seat.actor
        try:
            return await self._load(seat)
        except _LostError as error:
            return await self._replace(seat, actor, error)

    async def _replace(self, seat: _Seat, lost: Any, reason: _LostError) -> float:
        """Put a new engine, with the current weights, in the place of `lost`, unless another caller has."""
        async with self._replacing:
            if self._failure is not None:
                raise EngineStoppedError(self._failure)
            if seat.actor is not lost:
                return 0.0
            seat.actor = None
            ray.kill(lost)
            self.restarts += 1
            try:
                self._check_replaceable(reason)
                print(f"{reason}; starting another in its place", file=sys.stderr)
                await self._start(seat)
                distance = await self._load(seat) if self._current is not None else 0.0
            except MmprmError as error:
                self._failure = str(error)
                self._dispatch()
                raise
        self._dispatch()
        return distance

    def _check_replaceable(self, reason: _LostError) -> None:
        if self.restarts > self._config.most_restarts:
            raise EngineStoppedError(
                f"{reason}; that is engine number {self.restarts} to die in this run, more than "
                f"rollouts.most_restarts={self._config.most_restarts}; see its log, and resume from the last checkpoint"
            )
        if self._current is not None and self._current.folder is None:
            raise EngineStoppedError(
                f"{reason}; with weights.transport={self._weights.transport} a new engine cannot get the current "
                "weights: resume the run from its last checkpoint, or set weights.transport=file"
            )

    async def _all(self, what: str, call: Callable[[Any], Awaitable[T]]) -> list[T]:
        timeout = self._weights.timeout_s
        answers = (_within(timeout, f"{seat.name}: {what}", call(seat.actor)) for seat in self._seats)
        return await asyncio.gather(*answers)


class _LostError(EngineStoppedError):
    """An engine died or does not answer."""

    timed_out = False


async def _within(timeout: float, what: str, answer: Awaitable[T], silent: bool = False) -> T:
    """The actor's answer. Says every 30 s what it waits for; errors of ours come as they were raised, _LostError where
    the engine is gone or the time is over."""
    task = asyncio.ensure_future(answer)
    waited = 0.0
    while not task.done():
        step = min(NOTICE_SECONDS, timeout - waited)
        if step <= 0:
            error = _LostError(f"waited {timeout:g} s in vain for {what}")
            error.timed_out = True
            raise error
        await asyncio.wait([task], timeout=step)
        waited += step
        if not task.done() and not silent:
            print(f"waiting for {what} ({waited:.0f} s)", file=sys.stderr)
    try:
        return task.result()
    except (RayActorError, RayTaskError) as error:
        cause = cause_of(error)
        if isinstance(cause, EngineStoppedError):
            raise _LostError(f"{what}: {cause}") from None
        raise cause from None
