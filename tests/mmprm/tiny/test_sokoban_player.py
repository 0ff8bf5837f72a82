"""Test the player that solves Sokoban with mistakes: its probabilities, and the moves that it makes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mmprm.environments.episode import TurnRequest
from mmprm.environments.interface import Observation
from mmprm.tiny.sokoban import MOVES, move, moves_to_solve, parse_level
from mmprm.tiny.sokoban_player import SolverPlayer, action_text, move_probabilities, solver_moves
from mmprm.types import Problem

LEVEL = "######\n#@$ .#\n######"
ROOM = "######\n#    #\n#  $.#\n#@   #\n#    #\n######"


def test_move_probabilities_by_hand() -> None:
    """From the lower left, up and right are both on a shortest solution, and right leads to below the box, from where a
    push loses the level."""
    assert moves_to_solve(parse_level(ROOM)) == 3
    assert move_probabilities(parse_level(ROOM), 0.4) == pytest.approx([0.3, 0, 0, 0.7])
    assert move_probabilities(move(parse_level(ROOM), "up"), 0.4) == pytest.approx([0, 0.2, 0, 0.8])


def test_without_a_losing_move_and_in_a_lost_level() -> None:
    assert move_probabilities(parse_level(LEVEL), 0.4) == [0, 0, 0, 1], "the box can only be pushed onto the goal"
    lost = parse_level("#####\n#$  #\n#@ .#\n#####")
    assert move_probabilities(lost, 0.4) == [0.25] * 4


async def test_the_player_moves_with_these_probabilities() -> None:
    problem = Problem("p", "?", "", extra={"level": ROOM})
    player = SolverPlayer(0.4)
    requests = [TurnRequest(problem, (Observation(("",)),), (), seed) for seed in range(2000)]
    counts = Counter([(await player.act(request)).text for request in requests])
    shares = [counts[action_text(name)] / len(requests) for name in MOVES]
    assert shares == pytest.approx(move_probabilities(parse_level(ROOM), 0.4), abs=0.05)


def test_the_solver_plays_a_shortest_solution() -> None:
    moves = list(solver_moves(parse_level(LEVEL), random.Random(0), 0.0, 12))
    assert [each.name for each in moves] == ["right", "right"]
    assert move(moves[-1].state, "right").solved


def test_mistakes_are_made_until_the_level_is_lost() -> None:
    """The shortest path to a lost level goes below or above the box and pushes it to the wall: three moves."""
    level = parse_level("#####\n#   #\n#@$.#\n#   #\n#####")
    for seed in range(20):
        moves = list(solver_moves(level, random.Random(seed), 1.0, 12))
        assert moves[0].state == level
        assert len(moves) == 3
        assert all(moves_to_solve(each.state) for each in moves), "no move in a state without a solution"
        assert moves_to_solve(move(moves[-1].state, moves[-1].name)) is None


def test_each_move_is_drawn_from_its_probabilities_in_the_order_of_moves() -> None:
    """Seeds give the same training data in every version."""
    moves = list(solver_moves(parse_level(ROOM), random.Random(3), 0.6, max_turns=12))
    assert [each.name for each in moves] == ["right", "right", "up"]
    rng = random.Random(3)
    for each in moves:
        assert each.probabilities == tuple(move_probabilities(each.state, 0.6))
        assert [each.name] == rng.choices(list(MOVES), each.probabilities)
    assert list(solver_moves(parse_level(ROOM), random.Random(3), 0.6, max_turns=2)) == moves[:2]
