"""Test what happens to pending requests when an engine in vLLM's own processes is closed."""

from __future__ import annotations

import asyncio
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
        self.dead_error = RuntimeError("EngineCore encountered an issue")
        self.renderer = SimpleNamespace(
            default_chat_tok_params=SimpleNamespace(with_kwargs=lambda **_: None),
            render_cmpl_async=self._render,
        )

    async def _render(self, prompts: list[Any], _: Any) -> list[Any]:
        return prompts

    async def generate(self, *_: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

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
    return future.exception(timeout=5)


def test_requests_in_flight_fail_when_the_engine_is_closed(engine: SeparateEngine) -> None:
    sampled = [engine.submit({"prompt": "x"}, None) for _ in range(3)]
    held = engine.call("reset_prefix_cache")  # waits until nothing is in flight
    engine.close()
    assert engine._engine.is_shut_down
    for future in [*sampled, held]:
        assert isinstance(error_of(future), EngineStoppedError)
        assert "it was closed" in str(error_of(future))


def test_a_closed_engine_refuses_requests(engine: SeparateEngine) -> None:
    assert engine.call("reset_prefix_cache").result(timeout=5)
    engine.close()
    engine.close()
    assert isinstance(error_of(engine.submit({"prompt": "x"}, None)), EngineStoppedError)
    assert isinstance(error_of(engine.call("reset_prefix_cache")), EngineStoppedError)


def test_a_request_cancelled_by_its_caller_stays_cancelled(engine: SeparateEngine) -> None:
    sampled = engine.submit({"prompt": "x"}, None)
    sampled.cancel()
    assert sampled.cancelled()
    assert engine.call("reset_prefix_cache").result(timeout=5), "the engine keeps running"
    engine.close()


def test_a_check_tells_a_dead_or_closed_engine(engine: SeparateEngine) -> None:
    engine.check()
    engine._engine.errored = True
    with pytest.raises(EngineStoppedError, match="the engine has stopped: EngineCore encountered an issue"):
        engine.check()
    engine.close()
    with pytest.raises(EngineStoppedError, match="it was closed"):
        engine.check()
