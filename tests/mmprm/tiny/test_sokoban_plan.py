"""Test plans for whole Sokoban levels and LMM-R1's reward with worked numbers."""

from __future__ import annotations

import pytest

from mmprm.errors import DataError
from mmprm.tiny.sokoban import parse_level
from mmprm.tiny.sokoban_plan import SokobanPlanEnvironment, move_bonus, plan_reward, play_plan, read_plan, word_bonus
from mmprm.types import Problem

LEVEL = "######\n#@$ .#\n######"
STATE = parse_level(LEVEL)


def plan(moves: str, thoughts: str = "I push") -> str:
    return f"<think>{thoughts}</think><answer>{moves}</answer>"


def test_a_plan_is_read_in_any_case() -> None:
    assert read_plan(plan(" Left, UP,down ")) == ["left", "up", "down"]


@pytest.mark.parametrize(
    "text", ["left", plan("left, jump"), plan(""), plan("left") + "<answer>", "<answer>up</answer>"]
)
def test_a_plan_of_another_format_is_not_read(text: str) -> None:
    assert read_plan(text) is None
    assert plan_reward(STATE, text) == 0


def test_the_play_plan_on_the_way_counts() -> None:
    """Each push costs 0.1; the second one solves the level: −0.2 + 1 + 10. After it, no move is played."""
    assert play_plan(STATE, ["right", "right"]) == (pytest.approx(10.8), True)
    assert play_plan(STATE, ["right", "right", "left"]) == (pytest.approx(10.8), True)
    assert play_plan(STATE, ["right"]) == (0.0, False)
    assert play_plan(STATE, ["left"] * 50 + ["right", "right"]) == (0.0, False)


def test_moves_have_a_bonus_up_to_20() -> None:
    assert move_bonus(["up", "left"]) == pytest.approx(0.1)
    twenty = ["up", "left", "down", "right", "right"] * 4
    assert move_bonus(twenty) == pytest.approx(1.0)
    assert move_bonus([*twenty, "left", "up", "right", *twenty[:7]]) == pytest.approx(1 - 0.2 / 9)


def test_repetition_costs_the_bonus() -> None:
    """Seven copies in a row are allowed, and eight are not."""
    assert move_bonus(["up", "down"] * 7) == pytest.approx(0.7)
    assert move_bonus(["up", "down"] * 8) == 0.0
    assert move_bonus(["up"] * 8) == 0.0
    assert move_bonus(["up", "down", "left", "up", "right", "right"] * 8) == pytest.approx(1 - 0.2 * (28 / 30) ** 2)


def test_words_of_the_thoughts_have_a_bonus_up_to_200() -> None:
    assert word_bonus("I push it") == pytest.approx(0.002)
    assert word_bonus("word " * 300) == pytest.approx(0.2)


def test_the_parts_add_up() -> None:
    assert plan_reward(STATE, plan("right, right")) == pytest.approx(10.8 + 0.5 + 0.1 + 0.001)


def test_an_episode_is_one_plan() -> None:
    environment = SokobanPlanEnvironment()
    assert len(environment.reset(Problem("p", "?", "", extra={"level": LEVEL}), 0).images) == 1
    solved = environment.step(plan("right, right"))
    assert (solved.reward, solved.terminated, solved.success) == (pytest.approx(11.401), True, True)
    environment.reset(Problem("p", "?", "", extra={"level": LEVEL}), 0)
    failed = environment.step("right")
    assert (failed.reward, failed.terminated, failed.success, failed.info["action"]) == (0.0, True, False, None)
    with pytest.raises(DataError, match="has no level"):
        environment.reset(Problem("p", "?", ""), 0)
