"""Test what happens to pending requests when an engine in vLLM's own processes is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from mmprm.errors import EngineStoppedError
from mmprm.sampling import separate_engine
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.separate_engine import SeparateEngine


class SilentEngine:
    """Accepts requests and never answers them, as AsyncLLM does after its shutdown."""

    def __init__(self) -> None:
        self.is_shut_down = self.errored = False
        self.in_flight: dict[str, asyncio.Event] = {}
        self.output_processor = SimpleNamespace(parent_requests={})
        self.dead_error = RuntimeError("EngineCore encountered an issue")
        self.renderer = SimpleNamespace(
            default_chat_tok_params=SimpleNamespace(with_kwargs=lambda **_: None),
            render_cmpl_async=self._render,
        )

    async def _render(self, prompts: list[Any], _: Any) -> list[Any]:
        return prompts

    async def generate(self, prompt: Any, params: Any, name: str) -> AsyncIterator[Any]:
        stop = self.in_flight[name] = asyncio.Event()
        await stop.wait()
        yield f"tokens of {name} so far"

    async def abort(self, names: list[str]) -> None:
        """End requests with their tokens so far; their parent has no child left, and another one still has."""
        for name in names:
            self.in_flight.pop(name).set()
        parents = self.output_processor.parent_requests
        parents["aborted"] = SimpleNamespace(child_requests=set())
        parents["other"] = SimpleNamespace(child_requests={"0_other"})

    async def reset_prefix_cache(self) -> bool:
        return True

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SeparateEngine:
    async def start(*_: Any) -> SilentEngine:
        return SilentEngine()

    monkeypatch.setattr(SeparateEngine, "_start", start)
    monkeypatch.setattr(separate_engine, "engine_arguments", lambda *_: None)
    return SeparateEngine(EngineConfig(model="m"))


def error_of(future: Future[Any]) -> BaseException | None:
    return future.exception(timeout=60)


def test_requests_in_flight_fail_when_the_engine_is_closed(engine: SeparateEngine) -> None:
    sampled = [engine.submit({"prompt": "x"}, None) for _ in range(3)]
    held = engine.call("reset_prefix_cache")  # waits until nothing is in flight
    engine.close()
    assert engine._engine.is_shut_down
    for future in [*sampled, held]:
        assert isinstance(error_of(future), EngineStoppedError)
        assert "it was closed" in str(error_of(future))


def test_a_closed_engine_refuses_requests(engine: SeparateEngine) -> None:
    assert engine.call("reset_prefix_cache").result(timeout=60)
    engine.close()
    engine.close()
    assert isinstance(error_of(engine.submit({"prompt": "x"}, None)), EngineStoppedError)
    assert isinstance(error_of(engine.call("reset_prefix_cache")), EngineStoppedError)


def test_a_request_cancelled_by_its_caller_stays_cancelled(engine: SeparateEngine) -> None:
    sampled = engine.submit({"prompt": "x"}, None)
    sampled.cancel()
    assert sampled.cancelled()
    assert engine.call("reset_prefix_cache").result(timeout=60), "the engine keeps running"
    engine.close()


def test_an_interrupt_ends_the_requests_in_flight(engine: SeparateEngine) -> None:
    sampled = [engine.submit({"prompt": "x"}, None) for _ in range(2)]
    while len(engine._engine.in_flight) < 2:
        time.sleep(0.01)
    engine.interrupt().result(timeout=60)
    assert [future.result(timeout=60) for future in sampled] == ["tokens of 0 so far", "tokens of 1 so far"]
    assert set(engine._engine.output_processor.parent_requests) == {"other"}
    assert engine.call("reset_prefix_cache").result(timeout=60), "nothing is in flight"
    engine.close()


def test_a_check_tells_a_dead_or_closed_engine(engine: SeparateEngine) -> None:
    engine.check()
    engine._engine.errored = True
    with pytest.raises(EngineStoppedError, match="the engine has stopped: EngineCore encountered an issue"):
        engine.check()
    engine.close()
    with pytest.raises(EngineStoppedError, match="it was closed"):
        engine.check()
