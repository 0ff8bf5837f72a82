"""Test what an environment says about the turns of logged episodes."""

from __future__ import annotations

from mmprm.environments.load import EnvironmentConfig
from mmprm.types import Grading, Problem, Verdict
from policy_rl.monitor.truths import TurnTruths
from policy_rl.types import PlayedTurn, PlayedTurns, Response

ROOM = "######\n#    #\n# $. #\n#@   #\n######"
PROBLEM = Problem("room", "Solve the level.", "", extra={"level": ROOM})
SOKOBAN = EnvironmentConfig(path="sokoban", max_turns=5)


def episode(*names: str) -> Response:
    turns = tuple(PlayedTurn((), f"<action>{name}</action>", 0.0) for name in names)
    played = PlayedTurns(turns, range(len(turns)), (), Grading(Verdict.INCORRECT, None, ""))
    return Response("", (0,) * len(turns), (0.0,) * len(turns), "stop", played)


async def test_the_solver_speaks_after_each_turn() -> None:
    truths = TurnTruths(SOKOBAN, 0)
    assert await truths.of(PROBLEM, episode("right", "up")) == ("3 moves to the solution", "cannot be solved")
    assert await truths.of(PROBLEM, episode("up", "right")) == ("1 moves to the solution", "solved")
    assert await truths.of(PROBLEM, Response("a", (1,), (0.0,), "stop")) == (), "not an episode"
    assert await truths.of(Problem("no level", "?", ""), episode("up")) == ()
    assert await truths.of(PROBLEM, episode("up")) == ("1 moves to the solution",)


async def test_an_environment_without_truths_is_asked_once() -> None:
    silent = TurnTruths(EnvironmentConfig(path="corridor:Corridor"), 0)
    assert await silent.of(PROBLEM, episode("right")) == ()
    assert silent._config is None
    assert await TurnTruths(None, 0).of(PROBLEM, episode("right")) == ()
