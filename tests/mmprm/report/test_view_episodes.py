"""Test the page for browsing episodes: the frame after each turn, the solver's truth and the scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import texts_of_scenes

from mmprm.cli.main import main
from mmprm.environments.load import EnvironmentConfig
from mmprm.report.episodes import EpisodeReplay
from mmprm.report.images import inlined
from mmprm.report.view import write_view
from mmprm.tiny.sokoban_image import draw_state
from mmprm.tiny.sokoban_player import action_text, state_after
from mmprm.trees.serialization import pack_batch
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Finished, Store
from mmprm.types import Batch, Problem, Rollout, Solution, Steps, StepScores, Verdict
from tests.mmprm.report.test_view import Scripts

ROOM = "######\n#    #\n# $. #\n#@   #\n######"
UP, RIGHT, LEFT = map(action_text, ("up", "right", "left"))
PROBLEM = Problem("room", "Solve the level.", "", extra={"level": ROOM})
LOST = (RIGHT, UP, LEFT)
"""The second move pushes the box against the upper wall."""


def rollout(verdict: Verdict, *texts: str) -> Rollout:
    return Rollout(texts, verdict, len(texts), "".join(texts), None, "success" if verdict else "turn limit")


class Halving:
    """Scores turn t with 1 / 2^t."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        assert all(len(each.observations) == len(each.steps) + 1 for each in solutions)
        return [StepScores(tuple(2.0**-turn for turn in range(1, len(each.steps) + 1))) for each in solutions]


def make_store(folder: Path, level: str = ROOM) -> Store:
    environment = EnvironmentConfig(path="sokoban", max_turns=4)
    rule = StoppingRule(rollouts=2, false_negative_rate=0)
    config = {"search": rule.model_dump(), "environment": environment.resume_key(), "seed": 0}
    store = Store.create_or_open(folder / "trees.sqlite", config)
    store.add_problems([Problem("room", "Solve the level.", "", extra={"level": level})], with_extra=True)
    root = (rollout(Verdict.CORRECT, UP, RIGHT), rollout(Verdict.INCORRECT, *LOST, LEFT))
    batches = [
        Batch("room", (), 0, root),
        Batch("room", LOST[:2], 0, (rollout(Verdict.INCORRECT, LEFT, LEFT),) * 2),
        Batch("room", LOST[:1], 0, (rollout(Verdict.CORRECT, LEFT, UP, RIGHT), rollout(Verdict.INCORRECT, UP, UP, UP))),
    ]
    store.append(map(pack_batch, batches), [Finished("room", "done", "no candidates left")])
    return store


def turn(truth: str, score: float | None, *texts: str) -> dict[str, Any]:
    url, small = inlined(draw_state(state_after(ROOM, list(texts))))
    images = [{"url": url, "small": small}]
    return {"text": "" if texts else "Solve the level.", "images": images, "truth": truth, "score": score}


def branches(page: Path) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    data = json.loads(Scripts(page.read_text(encoding="utf-8")).data["problem-0"])
    found: list[Steps] = []
    for branch in data["branches"]:
        before = () if branch["parent"] is None else found[branch["parent"]]
        found.append((*before, *(data["texts"][step] for step in branch["steps"])))
    return {steps: branch.get("turns") for steps, branch in zip(found, data["branches"], strict=True)}


def test_each_branch_has_the_states_after_its_turns(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write_view(tmp_path / "view.html", store, 10, Halving())
    store.close()
    found = branches(tmp_path / "view.html")
    assert found[()] == [turn("2 moves to the solution", None)]
    assert found[LOST[:1]] == [turn("3 moves to the solution", 0.5, RIGHT)]
    assert found[LOST[:2]] == [turn("cannot be solved", 0.25, RIGHT, UP)]


def test_the_command_shows_episodes_without_a_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path).close()
    assert main(["view", str(tmp_path)]) == 0
    assert "1 of 1 problems" in capsys.readouterr().out
    assert branches(tmp_path / "view.html")[LOST[:2]] == [turn("cannot be solved", None, RIGHT, UP)]


def test_an_episode_that_cannot_be_replayed_is_shown_without_states(tmp_path: Path) -> None:
    """The level is solved at once by the first move, so the second one is refused."""
    store = make_store(tmp_path, "#####\n#@$.#\n#####")
    shown = EpisodeReplay(store).turns(store.problem("room"), [(), (RIGHT,), (RIGHT, UP)])
    store.close()
    assert list(shown) == [(), (RIGHT,)]
    assert shown[RIGHT,].truth == "solved"


def test_the_page_shows_actions_truths_and_scores(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write_view(tmp_path / "view.html", store, 10, Halving())
    store.close()
    seen = texts_of_scenes(tmp_path / "view.html", {"lost": ["problem=room&state=2"]})["lost"]
    assert (
        "start\nSolve the level.\n2 moves to the solution\n"
        "<action>right</action>\n3 moves to the solution · score 0.50\n"
        "<action>up</action>\ncannot be solved · score 0.25"
    ) in seen
