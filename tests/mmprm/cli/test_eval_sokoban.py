"""Test `mmprm eval sokoban` with players whose scores are known."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli import eval_sokoban as command
from mmprm.cli.main import main
from mmprm.environments.episode import Action, TurnRequest, TurnSampler
from mmprm.errors import EpisodeError
from mmprm.problems import write_problems
from mmprm.tiny.sokoban_player import SolverPlayer
from mmprm.tiny.sokoban_problems import make_sokoban_problems, solve_level
from mmprm.types import Problem

LEVELS = make_sokoban_problems(4, 0, "test", 5, 1)
IDS = [level.id for level in LEVELS]


class Planner:
    """Writes a shortest solution, with one invalid move first in every second level."""

    async def act(self, request: TurnRequest) -> Action:
        moves = solve_level(request.problem.extra["level"])
        moves = ["wait", *moves] if IDS.index(request.problem.id) % 2 else moves
        return Action(f"<think>Push.</think><answer>{', '.join(moves)}</answer>")


class Failing(SolverPlayer):
    """Fails in the first level."""

    async def act(self, request: TurnRequest) -> Action:
        if request.problem.id == IDS[0]:
            raise EpisodeError("the engine is tired")
        return await super().act(request)


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, player: TurnSampler, levels: list[Problem] = LEVELS, **more: Any
) -> tuple[int, dict[str, Any]]:
    @contextlib.contextmanager
    def opened(*_: object) -> Iterator[TurnSampler]:
        yield player

    monkeypatch.setattr(command, "check_config", lambda *_: None)
    monkeypatch.setattr(command, "opened_player", opened)
    write_problems(folder / "levels.jsonl", levels)
    values = {"engine.model": "x", "engine.dtype": "float32", "engine.images_per_prompt": 12, "output": folder} | more
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    code = main(["eval", "sokoban", str(folder / "levels.jsonl"), *words])
    result = folder / "sokoban.json"
    return code, json.loads(result.read_text()) if result.exists() else {}


def test_the_solver_has_the_highest_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(tmp_path, monkeypatch, SolverPlayer(0.0))
    assert (code, found["episodes"], found["solve_rate"], found["lost_rate"]) == (0, 4, 1, 0)
    assert (found["moves_over_optimum"], found["magebench"]) == (0, pytest.approx(100))
    assert "MageBench score     100.00" in capsys.readouterr().out


def test_a_plan_is_scored_by_its_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plans solve their level; the other two have an invalid move, and thus no moves at all."""
    _, found = run(tmp_path, monkeypatch, Planner(), plan=True)
    assert (found["episodes"], found["solve_rate"], found["moves_over_optimum"]) == (4, 0.5, 0)
    lost = [100 - 5 * (11 - 0.1 * level.extra["moves"]) for level in LEVELS[1::2]]
    assert found["magebench"] == pytest.approx((200 + sum(lost)) / 4)


def test_every_level_is_played_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = run(tmp_path, monkeypatch, SolverPlayer(0.9), samples=30, **{"sampling.temperature": 1})
    assert found["episodes"] == 120
    assert 0 < found["solve_rate"] < 1


def test_episodes_without_an_outcome_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(tmp_path, monkeypatch, Failing(0.0))
    assert (code, found["episodes"], found["solve_rate"]) == (0, 3, 1)
    assert "note: 1 of 4 episodes have no outcome (the first: the engine is tired)" in capsys.readouterr().err
    code, _ = run(tmp_path, monkeypatch, Failing(0.0), LEVELS[:1])
    assert code == 2
    assert "1 of 1 episodes have no outcome" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"engine.servers.urls": "[http://x/v1]"}, "episodes are played on an engine of this process"),
        ({"engine.images_per_prompt": 3}, "engine.images_per_prompt=3 must be at least 10"),
    ],
)
def test_settings_that_cannot_play_are_refused(
    more: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path, monkeypatch, SolverPlayer(0.0), **more)[0] == 2
    assert message in capsys.readouterr().err


def test_levels_without_a_solution_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corner = Problem("corner", "Solve the level.", "", extra={"level": "#####\n#$@.#\n#####"})
    assert run(tmp_path, monkeypatch, SolverPlayer(0.0), [corner])[0] == 2
    assert "problem corner: its level cannot be solved" in capsys.readouterr().err
