"""Test the order in which engines and trainer of `mmprm rl` start, with stand-ins for both."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_rl import make_config

from mmprm.errors import SamplingError, TrainingError
from policy_rl import run


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record what starts and ends, in order. Engines take longer than a trainer that starts at the same time."""
    seen: list[str] = []

    async def sleep() -> None:
        seen.append("engines sleep")

    async def start_engines(*_: Any, **__: Any) -> Any:
        seen.append("engines start")
        for _ in range(50):
            await asyncio.sleep(0.01)
            if "trainer runs" in seen:
                break
        seen.append("engines run")
        return SimpleNamespace(sleep=sleep, close=lambda: seen.append("engines close"))

    def start_trainer(*_: Any) -> Any:
        seen.append("trainer starts")
        time.sleep(0.05)
        seen.append("trainer runs")
        return SimpleNamespace(close=lambda: seen.append("trainer closes"))

    monkeypatch.setattr(run.RolloutPool, "start", start_engines)
    monkeypatch.setattr(run, "_start_trainer", start_trainer)
    return seen


async def start(folder: Path, **changes: Any) -> None:
    async with AsyncExitStack() as stack:
        await run._start(make_config(folder, **changes), 1, None, stack)


async def test_engines_on_the_trainers_gpus_start_alone_and_sleep_first(events: list[str], tmp_path: Path) -> None:
    await start(tmp_path, rollouts={"colocated": True})
    assert events[:5] == ["engines start", "engines run", "engines sleep", "trainer starts", "trainer runs"]
    assert events[5:] == ["trainer closes", "engines close"]


async def test_engines_on_separate_gpus_start_concurrently_with_the_trainer(events: list[str], tmp_path: Path) -> None:
    await start(tmp_path)
    assert sorted(events[:2]) == ["engines start", "trainer starts"]
    assert events[2:] == ["trainer runs", "engines run", "trainer closes", "engines close"]


async def test_a_trainer_that_does_not_start_closes_the_engines(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TrainingError("no memory")

    monkeypatch.setattr(run, "_start_trainer", fail)
    with pytest.raises(TrainingError, match="no memory"):
        await start(tmp_path, rollouts={"colocated": True})
    assert events[-1] == "engines close"


async def test_engines_that_do_not_start_close_the_trainer(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise SamplingError("no memory")

    monkeypatch.setattr(run.RolloutPool, "start", fail)
    with pytest.raises(SamplingError, match="no memory"):
        await start(tmp_path)
    assert events == ["trainer starts", "trainer runs", "trainer closes"]


async def test_the_error_of_the_engines_precedes_that_of_the_trainer_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def start_trainer(*arguments: Any) -> Any:
        arguments[-1].append(SimpleNamespace(abandon=lambda reason: ended.set()))
        begun.set()
        assert ended.wait(60), "the trainer is abandoned"
        raise TrainingError("rank 0 of the trainer has died")

    async def fail(*_: Any, **__: Any) -> None:
        assert await asyncio.to_thread(begun.wait, 60)
        raise SamplingError("no memory")

    monkeypatch.setattr(run, "_start_trainer", start_trainer)
    monkeypatch.setattr(run.RolloutPool, "start", fail)
    with pytest.raises(SamplingError, match="no memory"):
        await start(tmp_path)


async def test_a_stop_during_the_start_abandons_the_trainer(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def start_engines(*_: Any, **__: Any) -> None:
        events.append("engines start")
        await asyncio.Event().wait()

    def abandon(reason: str) -> None:
        events.append(reason)
        ended.set()

    def start_trainer(*arguments: Any) -> Any:
        arguments[-1].append(SimpleNamespace(abandon=abandon))
        begun.set()
        assert ended.wait(60), "the trainer is abandoned"
        return SimpleNamespace(close=lambda: events.append("trainer closes"))

    monkeypatch.setattr(run.RolloutPool, "start", start_engines)
    monkeypatch.setattr(run, "_start_trainer", start_trainer)
    task = asyncio.create_task(start(tmp_path))
    assert await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["engines start", "the run was stopped", "trainer closes"]
