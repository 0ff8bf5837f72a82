"""Test the comparison of turn labels with Sokoban's solver on search trees written by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import agents_labels
from benchmarks.agents_labels import BARS, Bench, found_errors, kill
from benchmarks.agents_sokoban import SMALL, SOLVER, solved_once
from mmprm.environments.load import EnvironmentConfig
from mmprm.tiny.sokoban_player import SolverPlayer, action_text
from mmprm.types import Counts, Node, Problem, Rollout, Tree, Verdict

ROOM = "######\n#    #\n# $. #\n#@   #\n######"
PROBLEM = Problem("room", "Solve the level.", "", extra={"level": ROOM})
UP, RIGHT, LEFT = map(action_text, ("up", "right", "left"))
LOST = (RIGHT, UP, LEFT, LEFT)
"""The second move pushes the box against the upper wall."""


def rollout(verdict: Verdict, *texts: str) -> Rollout:
    return Rollout(texts, verdict, len(texts), "".join(texts))


def test_a_first_error_is_found_if_adjacent_states_differ() -> None:
    """The first two failed episodes have a first error; between the states of the third lie two turns."""
    other, wide = (UP, LEFT, LEFT, LEFT), (LEFT, UP, UP, UP)
    root = (rollout(Verdict.CORRECT, UP, RIGHT), *(rollout(Verdict.INCORRECT, *texts) for texts in (LOST, other, wide)))
    tree = Tree("room", (Node((), (Counts(1, 3),), root),))
    labels = {
        (): Counts(1, 3),
        LOST[:1]: Counts(2, 2),
        LOST[:2]: Counts(0, 4),
        other[:1]: Counts(0, 4),
        wide[:1]: Counts(1, 3),
        wide[:3]: Counts(0, 4),
    }
    assert list(found_errors(tree, labels)) == [(LOST, 1), (other, 0)]


async def test_states_that_the_policy_solves_at_least_once() -> None:
    environment = EnvironmentConfig(path="sokoban", max_turns=5)
    states = [(PROBLEM, LOST[:1]), (PROBLEM, LOST[:2]), (PROBLEM, (LEFT, LEFT, LEFT))]
    assert await solved_once(states, SolverPlayer(0.3), environment) == [True, False, True]
    assert await solved_once([(PROBLEM, (LEFT,) * 4)], SolverPlayer(0), environment) == [False], "one turn is left"


def test_first_errors_must_be_of_enough_levels() -> None:
    _, met = BARS["first_error"]
    assert met({"value": 0.9, "levels": 60})
    assert not met({"value": 1.0, "levels": 59})
    assert not met({"value": 0.89, "levels": 100})


def test_kills_begin_with_an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished annotation of an earlier run would lose nothing when it is killed."""
    finished = tmp_path / "killed" / "trees.sqlite"
    finished.parent.mkdir()
    finished.touch()
    monkeypatch.setattr(agents_labels, "annotate", lambda *_: None)
    monkeypatch.setattr(agents_labels, "_batches", lambda run: set())

    def started(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(InterruptedError):
        kill(Bench(tmp_path, SOLVER, SMALL))
    assert not finished.exists()
