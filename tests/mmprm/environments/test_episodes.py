"""Test episodes: order of turns, restored starts, limits, outcomes, and environments that fail or hang."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from mmprm.environments.episode import Action, Episode, EpisodeStart, TurnRequest, outcome, play
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.errors import ContextLimitError, DataError, EngineStoppedError, SamplingError
from mmprm.types import Problem, Verdict

ROOM = "######\n#    #\n# $. #\n#@   #\n######"
PROBLEM = Problem("p", "Solve the level.", "", extra={"level": ROOM})
SOKOBAN = EnvironmentConfig(path="sokoban", max_turns=4)
UP, RIGHT, LEFT = (f"<action>{name}</action>" for name in ("up", "right", "left"))


class Script:
    """Plays the given texts; an exception among them is raised."""

    def __init__(self, *texts: str | Exception) -> None:
        self._texts = texts
        self.requests: list[TurnRequest] = []

    async def act(self, request: TurnRequest) -> Action:
        text = self._texts[len(self.requests)]
        self.requests.append(request)
        if isinstance(text, Exception):
            raise text
        return Action(text, finish_reason="abort" if text == "abort" else "stop")


class Fragile:
    """Raises on "break", hangs on "hang", and otherwise ends with the reward that the text names."""

    closed = 0

    def reset(self, problem: Problem, seed: int) -> Observation:
        return Observation((f"seed {seed}",))

    def step(self, text: str) -> Transition:
        if text == "break":
            raise ZeroDivisionError("no")
        if text == "hang":
            time.sleep(60)
        return Transition(Observation((text,)), float(text), terminated=text != "0")

    def close(self) -> None:
        type(self).closed += 1


FRAGILE = EnvironmentConfig(path=f"{__name__}:Fragile", max_turns=3, timeout_seconds=20)


async def episode(
    script: Script, config: EnvironmentConfig = SOKOBAN, actions: tuple[str, ...] = (), problem: Problem = PROBLEM
) -> Episode:
    pool = EnvironmentPool(config)
    try:
        return await play(EpisodeStart(problem, 5, 7, tuple(map(Action, actions))), script, pool, config)
    finally:
        pool.close()


async def test_the_policy_sees_all_observations_and_its_own_actions() -> None:
    script = Script(UP, RIGHT)
    found = await episode(script)
    assert (found.verdict, found.reason, found.restored) == (Verdict.CORRECT, "success", 0)
    assert [turn.action.text for turn in found.turns] == [UP, RIGHT]
    assert found.episode_return == pytest.approx(10.8)
    first, second = script.requests
    assert first.observations[0].text == "Solve the level."
    assert second.observations == (first.observations[0], found.turns[0].transition.observation)
    assert [action.text for action in second.actions] == [UP]
    assert first.seed != second.seed


async def test_a_start_is_restored_by_replay() -> None:
    whole = await episode(Script(UP, RIGHT))
    script = Script(RIGHT)
    found = await episode(script, actions=(UP,))
    assert (found.turns, found.restored, found.verdict) == (whole.turns, 1, Verdict.CORRECT)
    assert [turn.action.text for turn in found.played] == [RIGHT]
    assert len(script.requests) == 1


async def test_the_turn_limit_counts_restored_turns() -> None:
    found = await episode(Script(LEFT, LEFT, LEFT), actions=(LEFT,))
    assert (len(found.turns), found.verdict, found.reason) == (4, Verdict.INCORRECT, "turn limit")


async def test_a_failure_of_the_environment_is_an_episode_with_its_reason() -> None:
    found = await episode(Script("0", "break"), FRAGILE)
    assert (len(found.turns), found.verdict) == (1, Verdict.UNKNOWN)
    assert found.reason == "environment failed: ZeroDivisionError: no"
    for reward in ("nan", "inf"):  # would otherwise be a success or failure, and make the group's advantages nan
        found = await episode(Script("0", reward), FRAGILE)
        assert (len(found.turns), found.verdict) == (1, Verdict.UNKNOWN)
        assert found.reason == f"environment failed: its reward is {reward}, not a finite number"


class Raising(Fragile):
    """Raises the exception that the text names."""

    def step(self, text: str) -> Transition:
        raise {"next": StopIteration, "exit": SystemExit, "cancel": asyncio.CancelledError, "late": TimeoutError}[text]


@pytest.mark.parametrize(
    ("text", "name"),
    [("next", "StopIteration"), ("exit", "SystemExit"), ("cancel", "CancelledError"), ("late", "TimeoutError")],
)
async def test_exceptions_that_would_stop_the_event_loop_are_data(text: str, name: str) -> None:
    config = EnvironmentConfig(path=f"{__name__}:Raising", timeout_seconds=5)
    found = await asyncio.wait_for(episode(Script(text), config), 20)
    assert (found.verdict, found.reason) == (Verdict.UNKNOWN, f"environment failed: {name}: ")


async def test_an_environment_that_hangs_is_abandoned() -> None:
    began = time.monotonic()
    found = await episode(Script("hang"), FRAGILE.model_copy(update={"timeout_seconds": 0.1}))
    assert (found.verdict, found.reason) == (Verdict.UNKNOWN, "environment took more than 0.1 s")
    assert time.monotonic() - began < 30, "the environment itself takes 60 s"


async def test_a_broken_environment_is_replaced_and_a_good_one_reused() -> None:
    pool = EnvironmentPool(FRAGILE.model_copy(update={"max_environments": 1}))
    made, before = [], Fragile.closed
    for text in ("1", "1", "break", "1"):
        await play(EpisodeStart(PROBLEM, 5, 7), Script(text), pool, FRAGILE)
        made.append(pool._idle[0] if pool._idle else None)
    assert made[0] is made[1]
    assert made[2] is None
    assert made[3] is not made[1]
    for _ in range(2000):
        await asyncio.sleep(0.01)
        if Fragile.closed == before + 1:
            return
    pytest.fail("the broken environment was not closed")


async def test_no_more_episodes_are_played_than_there_may_be_environments() -> None:
    pool = EnvironmentPool(FRAGILE.model_copy(update={"max_environments": 2}))
    playing, most = 0, 0

    class Counting(Script):
        async def act(self, request: TurnRequest) -> Action:
            nonlocal playing, most
            playing += 1
            most = max(most, playing)
            await asyncio.sleep(0.1)
            playing -= 1
            return Action("1")

    await asyncio.gather(*(play(EpisodeStart(PROBLEM, 5, 7), Counting(), pool, FRAGILE) for _ in range(6)))
    assert most == 2


async def test_engine_failures() -> None:
    aborted = await episode(Script(LEFT, "abort"))
    assert (len(aborted.turns), aborted.verdict, aborted.reason) == (1, Verdict.UNKNOWN, "aborted by the engine")
    failed = await episode(Script(LEFT, SamplingError("problem p: 513 tokens are too many")))
    assert (len(failed.turns), failed.verdict) == (1, Verdict.UNKNOWN)
    assert failed.reason == "sampling failed: … tokens are too many"
    with pytest.raises(SamplingError, match="no image"):
        await episode(Script(SamplingError("no image")))
    with pytest.raises(EngineStoppedError):
        await episode(Script(LEFT, EngineStoppedError("gone")))


async def test_an_episode_that_exceeds_the_context_failed() -> None:
    full = ContextLimitError("problem p: 513 tokens")
    cut = await episode(Script(LEFT, full))
    assert (len(cut.turns), cut.verdict, cut.reason) == (1, Verdict.INCORRECT, "context limit")
    with pytest.raises(ContextLimitError, match="513 tokens"):
        await episode(Script(full))


async def test_a_problem_that_the_environment_cannot_use_is_an_error() -> None:
    with pytest.raises(DataError, match="problem p: has no level"):
        await episode(Script(), problem=replace(PROBLEM, extra={}))


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (Transition(Observation(()), 1.0, True), (Verdict.CORRECT, "success")),
        (Transition(Observation(()), 0.5, True), (Verdict.INCORRECT, "no success")),
        (Transition(Observation(()), 1.0, False), (Verdict.INCORRECT, "turn limit")),
        (Transition(Observation(()), 1.0, False, truncated=True), (Verdict.INCORRECT, "truncated")),
        (Transition(Observation(()), 9.0, True, info={"success": False}), (Verdict.INCORRECT, "no success")),
        (Transition(Observation(()), 0.0, True, info={"success": True}), (Verdict.CORRECT, "success")),
    ],
)
def test_outcomes_with_and_without_a_report_of_success(last: Transition, found: tuple[Verdict, str]) -> None:
    """The first turn earns 0.5, and a return of at least 1.2 counts as success."""
    assert outcome([Transition(Observation(()), 0.5, False), last], 1.2) == found
