"""Test the scores of Sokoban episodes against values computed by hand."""

from __future__ import annotations

import pytest

from mmprm.errors import DataError
from mmprm.metrics import NO_ERROR
from mmprm.tiny.sokoban import parse_level
from mmprm.tiny.sokoban_player import action_text
from mmprm.tiny.sokoban_scores import best_return, first_losing_turn, is_solvable, magebench_score, sokoban_metrics
from mmprm.types import Problem

ROOM = "######\n#    #\n# $. #\n#@   #\n######"
"""Solved by up, right."""
PROBLEM = Problem("p", "Solve the level.", "", extra={"level": ROOM})
UP, DOWN, LEFT, RIGHT = map(action_text, ("up", "down", "left", "right"))


def test_best_return_by_hand() -> None:
    """Two moves and one box: 10 + 1 - 0.2. A box that starts on its goal earns nothing for being there."""
    assert best_return(parse_level(ROOM)) == pytest.approx(10.8)
    two = "#######\n#@$. *#\n#######"
    assert best_return(parse_level(two)) == pytest.approx(10.9)


@pytest.mark.parametrize(
    ("rewards", "score"),
    [
        ([-0.1, 10.9], 100.0),
        ([-0.1, -0.1, -0.1, 10.9], 99.0),
        ([-0.1, -0.1], 46.0),
        ([], 46.0),
        ([-0.1, 0.9, -1.1], 50.0),
    ],
)
def test_magebench_scores_by_hand(rewards: list[float], score: float) -> None:
    """U = 10.8. The best partial return counts, and it is at least 0: 100 + 5 × (0.8 - 10.8) = 50."""
    assert magebench_score(rewards, 10.8) == pytest.approx(score)


def test_metrics_of_three_episodes_by_hand() -> None:
    solved, slow = [UP, RIGHT], [LEFT, "what?", UP, RIGHT]
    lost = [RIGHT, UP, UP, UP]  # the box ends at the upper wall, where there is no goal
    found = sokoban_metrics([(PROBLEM, solved), (PROBLEM, slow), (PROBLEM, lost)])
    assert (found.episodes, found.solve_rate, found.lost_rate) == (3, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.moves_over_optimum == 1.0, "0 and 2 moves beyond the optimum"
    assert found.magebench == pytest.approx((100 + 99 + 46) / 3)


def test_a_plan_ends_with_the_solution() -> None:
    """The last two moves would leave the goal, but the level has ended: no move beyond the optimum, and score 100."""
    found = sokoban_metrics([(PROBLEM, [UP, RIGHT, RIGHT, DOWN])])
    assert (found.solve_rate, found.moves_over_optimum, found.magebench) == (1, 0, pytest.approx(100))


def test_what_cannot_be_scored_is_refused() -> None:
    corner = Problem("corner", "Solve the level.", "", extra={"level": "#####\n#$@.#\n#####"})
    with pytest.raises(DataError, match="problem corner: its level cannot be solved"):
        sokoban_metrics([(corner, [LEFT])])
    solved = Problem("solved", "Solve the level.", "", extra={"level": "#####\n#@* #\n#####"})
    with pytest.raises(DataError, match="problem solved: its level is solved before the first move; remove it"):
        sokoban_metrics([(solved, [LEFT])])
    with pytest.raises(DataError, match="no episodes"):
        sokoban_metrics([])


def test_no_solved_episode_has_no_moves_over_the_optimum() -> None:
    assert sokoban_metrics([(PROBLEM, [LEFT])]).moves_over_optimum is None


def test_the_first_losing_turn_is_a_push_or_a_wasted_move() -> None:
    lost = [RIGHT, UP, UP]
    assert [is_solvable(ROOM, lost[:length], 9) for length in range(4)] == [True, True, False, False]
    assert first_losing_turn(ROOM, lost, 9) == 1
    assert first_losing_turn(ROOM, [LEFT, UP, RIGHT], 3) == NO_ERROR
    assert first_losing_turn(ROOM, [LEFT, LEFT, UP], 3) == 1, "two moves are needed, and one is left"
