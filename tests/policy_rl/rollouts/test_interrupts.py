"""Test that new weights interrupt rollouts without a version, which then continue, with actors that have no engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.types import Problem
from policy_rl.rollouts import engine_set
from policy_rl.rollouts.config import RolloutConfig
from policy_rl.rollouts.pool import RolloutPool, with_segment
from policy_rl.types import Group, Response
from policy_rl.weights.config import WeightsConfig
from policy_rl.weights.transfer import Published

PROBLEM = Problem("p", "?", "1")


def published(version: int) -> Published:
    return Published(version, 1, 4, "/folder", (-1.0, -2.0))


LENGTHS = (1, 4)
"""Lengths of the responses 0 and 1 of a group. An engine samples two tokens before it can be interrupted."""


class Actor:
    """Samples tokens whose ids are the version of the weights. An interrupt stops responses after their second token.

    `deaf` is the number of interrupts that arrive before the requests that they should stop.
    """

    deaf = 0

    def __init__(self) -> None:
        self.requests: list[tuple[int, int, dict[str, Any]]] = []
        self.waiting: list[asyncio.Event] = []
        for name in ("start", "sample", "load", "interrupt"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    async def _start(self, *_: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (1, 2, 3), (9,)

    async def _sample(self, problem: Problem, n: int, seed: int, version: int, **settings: Any) -> Group:
        self.requests.append((n, seed, settings))
        prefix = settings.get("prefix")
        given = [] if prefix is None else prefix.token_ids.tolist()
        if given:
            return Group(problem, (self._response(given, 4, version, "stop"),), version, 5)
        stop = asyncio.Event()
        self.waiting.append(stop)
        await stop.wait()
        ends = [("interrupted", 2) if length > 2 else ("stop", length) for length in LENGTHS]
        return Group(problem, tuple(self._response([], length, version, end) for end, length in ends), version, 5)

    def _response(self, given: list[int], length: int, version: int, end: str) -> Response:
        ids = [*given, *[version] * (length - len(given))]
        return Response("", ids, np.full(len(ids), -1.0 - version), end)

    async def _interrupt(self) -> None:
        self.deaf -= 1
        if self.deaf < 0:
            for stop in self.waiting:
                stop.set()

    async def _load(self, new: Any) -> tuple[float, ...]:
        assert all(stop.is_set() for stop in self.waiting), "nothing is in flight"
        return new.probe


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    actor = Actor()
    monkeypatch.setattr(
        engine_set, "ray", SimpleNamespace(remote=lambda **_: lambda _: SimpleNamespace(remote=lambda: actor))
    )
    monkeypatch.setattr(engine_set, "engine_resources", lambda engine, size: ([engine] * size, {"num_cpus": 1}))
    monkeypatch.setattr("policy_rl.rollouts.queue.INTERRUPT_SECONDS", 0.01)
    return actor


async def start() -> RolloutPool:
    engine = EngineConfig(model="m", max_num_seqs=16, dtype="float32")
    sampling = SamplingConfig(max_tokens=10)
    return await RolloutPool.start(engine, sampling, PromptConfig(), RolloutConfig(engines=1), WeightsConfig())


async def in_flight(actor: Actor, count: int = 1) -> None:
    """Wait until the engine has received this many requests that it does not answer by itself."""
    while len(actor.waiting) < count:
        await asyncio.sleep(0.001)


async def sample_amid_a_change(actor: Actor) -> Group:
    """Request two responses without a version, and load version 1 while they are in flight."""
    pool = await start()
    request = asyncio.create_task(pool.sample(PROBLEM, 2, 7, None))
    await in_flight(actor)
    await asyncio.wait_for(pool.load_weights(published(1)), 60)
    return await asyncio.wait_for(request, 60)


async def test_an_interrupted_response_continues_with_the_new_weights(actor: Actor) -> None:
    group = await sample_amid_a_change(actor)
    done, continued = group.responses
    assert (group.version, done.token_ids.tolist(), done.segments) == (0, [0], ())
    assert (continued.token_ids.tolist(), continued.segments) == ([0, 0, 1, 1], ((0, 2), (1, 2)))
    assert (done.finish_reason, continued.finish_reason) == ("stop", "stop")


async def test_the_rest_of_a_response_has_its_own_seed_and_limit(actor: Actor) -> None:
    await sample_amid_a_change(actor)
    (first, _, _), (n, seed, settings) = actor.requests
    assert (first, n, settings["max_tokens"], settings["prefix"].token_ids.tolist()) == (2, 1, 8, [0, 0])
    assert settings["prefix"].logprobs.tolist() == [-1, -1]
    assert seed == derive_seed(7 + 1, "p", "continued 0", 2)


async def test_an_interrupt_is_repeated_until_nothing_is_in_flight(actor: Actor) -> None:
    actor.deaf = 2
    group = await sample_amid_a_change(actor)
    assert group.responses[1].segments == ((0, 2), (1, 2))


async def test_an_interrupted_response_continues_before_waiting_groups(actor: Actor) -> None:
    pool = await start()
    requests = [asyncio.create_task(pool.sample(PROBLEM, n, 7, None)) for n in (16, 15)]
    await in_flight(actor)
    await asyncio.wait_for(pool.load_weights(published(1)), 60)
    await in_flight(actor, 2)
    assert [n for n, *_ in actor.requests] == [16, 1, 15]
    actor.waiting[1].set()
    await asyncio.gather(*requests)


async def test_an_interrupt_awaits_the_replacement_of_the_only_engine(actor: Actor) -> None:
    pool = await start()
    request = asyncio.create_task(pool.sample(PROBLEM, 2, 7, None))
    await in_flight(actor)
    (slot,) = pool._slots.all
    slot.actor = None
    load = asyncio.create_task(pool.load_weights(published(1)))
    await asyncio.sleep(0.03)
    assert not load.done()
    slot.actor = actor
    assert await asyncio.wait_for(load, 60) == 0
    assert (await request).responses[1].segments == ((0, 2), (1, 2))


async def test_requests_for_a_version_are_not_interrupted(actor: Actor) -> None:
    pool = await start()
    request = asyncio.create_task(pool.sample(PROBLEM, 2, 7, 0))
    await in_flight(actor)
    load = asyncio.create_task(pool.load_weights(published(1)))
    await asyncio.sleep(0.05)
    assert not request.done()
    actor.waiting[0].set()
    await request
    assert await load == 0


async def test_requests_without_a_version_wait_while_weights_change(actor: Actor) -> None:
    pool = await start()
    early = asyncio.create_task(pool.sample(PROBLEM, 2, 7, 0))
    await in_flight(actor)
    load = asyncio.create_task(pool.load_weights(published(1)))
    await asyncio.sleep(0)
    late = asyncio.create_task(pool.sample(PROBLEM, 2, 7, None))
    await asyncio.sleep(0.02)
    assert len(actor.waiting) == 1, "the engine does not get it while it finishes the early request"
    actor.waiting[0].set()
    await load
    await in_flight(actor, 2)
    actor.waiting[1].set()
    assert (await late).version == 1
    await early


def test_segments_join_tokens_of_one_version() -> None:
    segments = with_segment((), 3, 5)
    assert segments == ((3, 5),)
    assert with_segment(segments, 3, 7) == ((3, 7),)
    assert with_segment(segments, 4, 5) == segments, "interrupted before the first token"
    assert with_segment(with_segment(segments, 4, 6), 6, 9) == ((3, 5), (4, 1), (6, 3))
    assert sum(count for _, count in with_segment(with_segment(segments, 4, 6), 6, 9)) == 9
