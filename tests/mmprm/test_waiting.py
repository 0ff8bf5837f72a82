"""Waiting on actors: notices, limits and causes, without a cluster."""

from __future__ import annotations

import asyncio
import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from mmprm import actors
from mmprm.actors import Patience, cause_of, wait, wait_all
from mmprm.errors import DataError, EngineStoppedError, TrainingError


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "NOTICE_SECONDS", 0.05)


async def fail(error: Exception) -> None:
    raise error


async def test_a_long_wait_names_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    notices, started = itertools.count(1), asyncio.Event()

    def what() -> str:
        if next(notices) == 2:
            started.set()
        return "engine 1 to start"

    async def start() -> str:
        await started.wait()
        return "up"

    assert await wait(start(), what) == "up"
    assert re.fullmatch(r"(waiting for engine 1 to start \(\d+ s\)\n){2}", capsys.readouterr().err)


async def test_a_silent_wait_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    await wait(asyncio.sleep(0.12), "engine 1", silent=True)
    assert capsys.readouterr().err == ""


async def test_the_limit_is_an_error_with_a_way_out() -> None:
    with pytest.raises(
        TrainingError, match=r"^timed out after 0\.06 s waiting for engine 1 to load; raise x\.timeout_seconds$"
    ):
        await wait(asyncio.sleep(60), "engine 1 to load", 0.06, "raise x.timeout_seconds", TrainingError)


async def test_canceling_a_wait_cancels_the_call() -> None:
    waited_for = asyncio.ensure_future(asyncio.sleep(60))
    waiting = asyncio.create_task(wait(waited_for, "nothing"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting, waited_for], timeout=1)
    assert waited_for.cancelled()


async def test_an_error_of_the_actors_code_is_raised_unchanged() -> None:
    cause = DataError("line 3: no answer")
    with pytest.raises(DataError) as seen:
        await wait(fail(RayTaskError("load", "traceback", cause)), "engine 1 to load")
    assert seen.value is cause


async def test_a_dead_actor_is_named_with_the_pending_call() -> None:
    with pytest.raises(EngineStoppedError, match=r"^engine 1 to load: The actor experienced"):
        await wait(fail(RayActorError()), "engine 1 to load")


def test_the_error_includes_the_last_log_lines_of_a_dead_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "cause_of_death", lambda message: "Fatal Python error; its log is /x.err on host")
    assert "; it wrote last: Fatal Python error; its log is /x.err on host; resolve" in str(cause_of(RayActorError()))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a wait function that resolves the given references; all others stay pending until the timeout."""
    known: dict[str, Any] = {}
    now = SimpleNamespace(value=100.0)

    def wait_for(references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        done = [reference for reference in references if reference in known][:1]
        now.value += 0.0 if done else timeout + 0.001
        return done, [reference for reference in references if reference not in done]

    def get(references: list[str]) -> list[Any]:
        for reference in references:
            if isinstance(known[reference], Exception):
                raise known[reference]
        return [known[reference] for reference in references]

    monkeypatch.setattr(actors, "time", SimpleNamespace(monotonic=lambda: now.value))
    monkeypatch.setattr("ray.wait", wait_for)
    monkeypatch.setattr("ray.get", get)
    return known


def test_all_answers_come_in_order(answers: dict[str, Any]) -> None:
    answers |= {"b": 2, "a": 1}
    assert wait_all(["a", "b"], "two actors", 1) == [1, 2]


def test_the_first_failure_ends_the_wait_for_all(answers: dict[str, Any]) -> None:
    answers["b"] = RayTaskError("load", "traceback", DataError("b"))
    with pytest.raises(DataError, match=r"^b$"):
        wait_all(["a", "b"], "two actors", 5)


def test_all_late_answers_are_named_in_the_error(answers: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    answers["a"] = 1
    with pytest.raises(EngineStoppedError, match=r"^timed out after 0\.12 s waiting for 1 of 2$"):
        wait_all(["a", "b"], lambda: "1 of 2", 0.12)
    assert "waiting for 1 of 2 (0 s)" in capsys.readouterr().err


def test_a_shortened_wait_ends_silently(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(actors, "time", SimpleNamespace(monotonic=lambda: now.value))
    monkeypatch.setattr(actors, "NOTICE_SECONDS", 30.0)
    patience = Patience("x", 1000)
    assert patience.seconds() == 30
    now.value += 10
    patience.shorten(50)
    assert patience.seconds() == 20
    now.value += 45
    assert patience.seconds() == 5
    now.value += 5
    with pytest.raises(EngineStoppedError, match="timed out after 60 s waiting for x"):
        patience.seconds()
    assert capsys.readouterr().err == ""
