"""Test football: the reward by hand, the minimap, a scripted game, and a real one if envpool is installed."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmprm.environments import football
from mmprm.environments.football import ACTIONS, FootballEnvironment, draw_minimap, read_state
from mmprm.environments.football_reward import (
    NOBODY,
    OURS,
    THEIRS,
    DenseReward,
    FootballState,
    nearness,
    pass_clearness,
    shot_clearness,
)
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.environments.replay import check_deterministic, replay
from mmprm.errors import ConfigError, DataError, SetupError
from mmprm.types import Problem

PROBLEM = Problem("p", "Score a goal.", "")
FAR = [[1.0, 0.4]]
PASS, SHOT, RIGHT = ACTIONS.index("short_pass"), ACTIONS.index("shot"), ACTIONS.index("right")


def state(
    ball: Sequence[float] = (0.0, 0.0),
    theirs: Sequence[Sequence[float]] = FAR,
    team: int = OURS,
    owner: int = 3,
    **more: Any,
) -> FootballState:
    values = {"score": (0, 0), "steps_left": 400} | more
    points = np.array(theirs, dtype=float).reshape(-1, 2)
    none = np.zeros((0, 2))
    return FootballState(np.array(ball, dtype=float), none, points, none, team, owner, **values)


def rewards(*steps: tuple[FootballState, int]) -> list[float]:
    dense = DenseReward()
    return [dense.step(*step) for step in steps]


def act(*names: str) -> list[str]:
    return [f"<action>{name}</action>" for name in names]


def test_progress_counts_beyond_the_best_position_only() -> None:
    """20 · 0.8 · 0.1 = 1.6, then nothing for a way back and again, then 20 · 0.8 · 0.05."""
    balls = (0.5, 0.6, 0.5, 0.6, 0.65)
    found = rewards(*((state((x, 0.0)), RIGHT) for x in balls))
    assert found == pytest.approx([0, 1.6, 0, 0, 0.8])
    assert rewards(*((state((x, 0.0), team=NOBODY, owner=-1), RIGHT) for x in balls)) == [0] * 5


def test_passed_opponents_count_an_eleventh_each() -> None:
    behind, ahead = [[0.2, 0.1], [0.3, 0.0]], [[0.6, 0.1], [0.3, 0.0]]
    found = rewards(*((state((0.5, 0.0), theirs), RIGHT) for theirs in (ahead, behind, ahead)))
    assert found == pytest.approx([0, 20 / 11, -20 / 11])


def test_a_goal_and_a_loss_of_the_ball() -> None:
    start = (state(), RIGHT)
    assert rewards(start, (state(team=NOBODY, owner=-1, score=(1, 0)), RIGHT))[1] == 40
    dense = DenseReward()
    dense.step(*start)
    assert dense.step(state(team=THEIRS, owner=2, steps_left=300), RIGHT) == pytest.approx(20 * 0.25)
    assert dense.is_lost


def test_a_completed_pass_earns_its_clearness_and_later_ones_less() -> None:
    """An opponent at distance 0.2 toward the goal gives 0.2 / 11; one to the side gives 0.2."""
    ahead, aside = [[0.2, 0.0]], [[0.0, 0.2]]
    assert pass_clearness(state(theirs=ahead)) == pytest.approx(0.2 / 11)
    assert pass_clearness(state(theirs=aside)) == pytest.approx(0.2)
    assert pass_clearness(state(theirs=[])) == 0
    found = rewards(
        (state(), RIGHT),
        (state(theirs=ahead), PASS),
        (state(theirs=ahead, owner=-1, team=NOBODY), RIGHT),
        (state(theirs=ahead, owner=5), RIGHT),
        (state(theirs=aside, owner=5), PASS),
        (state(theirs=aside, owner=3), RIGHT),
        (state(theirs=aside, owner=5), RIGHT),  # without a pass
    )
    assert found == pytest.approx([0, 0, 0, 20 * 20 * 0.2 / 11, 0, 20 * 20 * 0.75 * 0.2, 0])


def test_a_shot_counts_once_while_the_player_has_the_ball() -> None:
    assert [nearness(state((x, 0.0))) for x in (0.75, 0.5, -0.5)] == [1, 0.5, 0]
    keepers = [[1.0, y] for y in (-0.044, -0.02, 0.0, 0.022, 0.044)]
    assert shot_clearness(state((0.8, 0.0), keepers)) == pytest.approx(0)
    assert shot_clearness(state((0.8, 0.0), [[0.9, 0.3]])) > 0.25
    empty = state((-0.5, 0.0), [])
    assert rewards((empty, RIGHT), (empty, SHOT)) == [0, 0], "no opponents, and too far from the goal"
    near = state((0.8, 0.0), [[0.9, 0.3]])
    found = rewards(
        (near, RIGHT), (near, SHOT), (near, SHOT), (state((0.8, 0.0), FAR, NOBODY, -1), RIGHT), (near, SHOT)
    )
    assert found == pytest.approx([0, 20 * 2 / 3, 0, 0, 20 * 2 / 3])
    after_shot = (state((0.8, 0.0), team=THEIRS, owner=3), RIGHT)
    dense = DenseReward()
    for step in ((near, RIGHT), (near, SHOT), after_shot):
        dense.step(*step)
    assert not dense.is_lost, "a shot that is saved is not a loss"


def minimap(*cells: tuple[int, int, int]) -> np.ndarray:
    """Return the planes of a minimap with marks at (plane, row, column)."""
    planes = np.zeros((1, 72, 96, 4), np.uint8)
    for plane, row, column in cells:
        planes[0, row, column, plane] = 255
    return planes


def info(score: tuple[int, int] = (0, 0), team: int = OURS, owner: int = 3, left: int = 400) -> dict[str, np.ndarray]:
    values = {"score": [score], "ball_owned_team": [team], "ball_owned_player": [owner], "steps_left": [left]}
    return {name: np.array(value) for name, value in values.items()}


def test_the_minimap_has_its_first_cell_at_the_top_left() -> None:
    found = read_state(minimap((0, 0, 0), (1, 71, 95), (2, 36, 48), (3, 0, 0)), info())
    assert found.ours[0] == pytest.approx([-1 + 1 / 96, (-1 + 1 / 72) / 2.25])
    assert found.theirs[0] == pytest.approx([1 - 1 / 96, (1 - 1 / 72) / 2.25])
    assert found.ball == pytest.approx([1 / 96, 1 / 72 / 2.25])
    image = Image.open(io.BytesIO(draw_minimap(found).data))
    assert image.size == (672, 504)
    assert image.getpixel((340, 256)) == (255, 255, 255), "the ball"
    assert image.getpixel((667, 500)) == (32, 64, 192), "an opponent at the bottom right"


class ScriptedGame:
    """Moves the ball one cell to the right per step; the opponents get it in step 4."""

    def __init__(self) -> None:
        self.actions: list[int] = []

    def reset(self) -> tuple[np.ndarray, dict]:
        return minimap((2, 36, 48)), info()

    def step(self, action: np.ndarray) -> tuple:
        self.actions.append(int(action[0]))
        count, no = len(self.actions), np.array([False])
        team = THEIRS if count == 4 else OURS
        return minimap((2, 36, 48 + count)), np.array([0.5]), no, no, info(team=team, left=400 - count)


def scripted(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> tuple[FootballEnvironment, ScriptedGame]:
    game = ScriptedGame()
    monkeypatch.setattr(football, "_import_envpool", lambda: None)
    monkeypatch.setattr(football, "_make_game", lambda scenario, seed: game)
    made = make_environment(EnvironmentConfig(path="football", arguments=arguments))
    assert isinstance(made, FootballEnvironment)
    return made, game


def test_a_turn_repeats_its_action_and_ends_with_the_ball_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    environment, game = scripted(monkeypatch, reward="dense", steps_per_turn=3)
    episode = replay(environment, PROBLEM, 0, act("right", "shot"))
    first, second = episode.transitions
    assert game.actions == [RIGHT] * 3 + [SHOT]
    assert first.reward == pytest.approx(2 * 20 * 0.8 * 2 / 96)
    assert (first.ended, second.terminated, second.success) == (False, True, False)
    assert episode.start.text.startswith("Score a goal.\nActions: idle, left, ")
    assert second.observation.text == "Score 0:0. The ball belongs to the opponents. 396 steps left.\n"


def test_a_text_without_an_action_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    environment, game = scripted(monkeypatch)
    environment.reset(PROBLEM, 0)
    transition = environment.step("I run.")
    assert (game.actions, transition.reward, transition.info["action"]) == ([0], 0.5, None)
    assert transition.observation.text.startswith("No valid action. Actions: idle, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "academy"}, "scenario='academy' must be one of academy_empty_goal_close, "),
        ({"reward": "goals"}, "must be score or dense"),
        ({"steps_per_turn": 0}, "must be at least 1"),
    ],
)
def test_invalid_arguments(monkeypatch: pytest.MonkeyPatch, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scripted(monkeypatch, **arguments)


def test_a_problem_may_name_its_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    environment, _ = scripted(monkeypatch)
    with pytest.raises(DataError, match="problem q: scenario 'nowhere' must be one of"):
        environment.reset(Problem("q", "Go.", "", extra={"scenario": "nowhere"}), 0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(SetupError, match=r"needs envpool; install mmprm\[football\]"):
        make_environment(EnvironmentConfig(path="football"))


def test_a_real_game_is_deterministic_and_can_be_won() -> None:
    pytest.importorskip("envpool", reason="needs the extra football (envpool)")
    environment = make_environment(
        EnvironmentConfig(path="football", arguments={"scenario": "academy_empty_goal_close", "steps_per_turn": 5})
    )
    episode = replay(environment, PROBLEM, 3, act(*["right"] * 6))
    assert (episode.episode_return, episode.transitions[-1].terminated, episode.transitions[-1].success) == (
        1,
        True,
        True,
    )
    check_deterministic(environment, PROBLEM, 4, act("right", "top", "shot"))
    dense = FootballEnvironment("academy_3_vs_1_with_keeper", "dense", steps_per_turn=3)
    passed = replay(dense, PROBLEM, 3, act("right", "short_pass"))
    assert passed.episode_return > 0
