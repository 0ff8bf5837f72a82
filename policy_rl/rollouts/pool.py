"""Sample rollouts from a pool of vLLM engines, and load new policy weights into them.

    pool = await RolloutPool.start(engine, sampling, prompt)
    group = await pool.sample(problem, n, rollout_seed(run_seed, version, problem.id), version)
    await pool.load_weights(published)                # see policy_rl.weights.transfer
    await pool.sleep(); await pool.wake()             # if trainer and engines share GPUs; then load_weights
    pool.close()

Await hundreds of `sample` calls concurrently: each group goes to an engine with free capacity. If an engine dies, its
groups are resampled on another engine or on its replacement (see EngineSet). Log-probabilities are those of the
sampling distribution: the trainer divides its logits by the temperature and sets those of `vision_token_ids` to −∞.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from mmprm.errors import EngineStoppedError, MmprmError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.types import Problem
from policy_rl.rollouts.config import RolloutConfig, check_sampling
from policy_rl.rollouts.engine_set import EngineSet, LostEngineError, answer_of
from policy_rl.rollouts.episodes import EpisodeConfig
from policy_rl.rollouts.queue import INTERRUPT_SECONDS
from policy_rl.types import Group, Response, ResponsePrefix
from policy_rl.weights.config import WeightsConfig
from policy_rl.weights.transfer import Published

LOSS_CHECK_SECONDS = 5.0
"""Interval in seconds between checks of whether an engine has died while weights are sent to it."""


class RolloutPool:
    """Samples groups of responses from engines and loads new weights into them.

    Create it with `start`, and use it in the same event loop.
    """

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
        are episodes. Raises ConfigError for unsupported sampling settings (see `check_sampling`), and SamplingError if
        an engine does not start.
        """
        check_sampling(sampling)
        config, weights = config or RolloutConfig(), weights or WeightsConfig()
        engines = EngineSet(engine, sampling, prompt, config, weights, version, options, episodes)
        await engines.start()
        return cls(engines, sampling.max_tokens, config.sample_timeout_seconds)

    def __init__(self, engines: EngineSet, max_tokens: int, timeout_seconds: float) -> None:
        self._engines, self._slots = engines, engines.slots
        self._max_tokens, self._timeout_seconds = max_tokens, timeout_seconds
        self._interruptible = 0
        """Number of requests in flight that new weights interrupt."""
        self.probe_token_ids = engines.probe_token_ids

    @property
    def version(self) -> int:
        """Return the weights version that all engines have loaded."""
        return self._slots.version

    @property
    def restarts(self) -> int:
        """Return the number of engines that were replaced."""
        return self._engines.restarts

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
        limit = max_tokens or self._max_tokens
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
                return await answer_of(answer, what, self._timeout_seconds, silent=True)
            except LostEngineError as error:
                first = True
                await self._engines.replace(slot, actor, error)
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
            try:
                return await self._engines.load(published)
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
        await self._engines.tell("fall asleep", lambda actor: actor.sleep.remote())

    async def wake(self) -> None:
        """Reallocate memory for the weights, which must then be sent. `load_weights` reallocates the caches.

        Dead engines are treated as in `sleep`.
        """
        await self._engines.tell("wake up", lambda actor: actor.wake.remote())

    async def until_lost(self) -> EngineStoppedError:
        """Wait until an engine that receives weights directly from the trainer's GPUs dies, and return the reason.

        Never returns if weights are files, because the trainer then does not need the engines.
        """
        if self._engines.transport == "file":
            await asyncio.Event().wait()
        while True:
            if self._slots.failure is not None:  # a request found it dead
                return EngineStoppedError(self._slots.failure)
            running = [slot for slot in self._slots.all if slot.actor is not None]
            checks = (answer_of(slot.actor.check.remote(), slot.name, None, silent=True) for slot in running)
            for found in await asyncio.gather(*checks, return_exceptions=True):
                if isinstance(found, EngineStoppedError):
                    return found
            await asyncio.sleep(LOSS_CHECK_SECONDS)

    def close(self) -> None:
        """Kill all engines."""
        self._engines.close()


def with_segment(segments: tuple[tuple[int, int], ...], version: int, end: int) -> tuple[tuple[int, int], ...]:
    """Extend the segments of a response to `end` tokens, the last of which were sampled by `version`."""
    tokens = end - sum(count for _, count in segments)
    if tokens and segments and segments[-1][0] == version:
        return (*segments[:-1], (version, segments[-1][1] + tokens))
    return (*segments, (version, tokens)) if tokens else segments


async def _asked(answer: Awaitable[None]) -> None:
    with suppress(RayError, MmprmError):
        await answer
