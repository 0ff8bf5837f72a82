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
    """From the lower left, up and right are both on a shortest solution."""
    assert moves_to_solve(parse_level(ROOM)) == 3
    assert move_probabilities(parse_level(ROOM), 0.4) == pytest.approx([0.4, 0.1, 0.1, 0.4])
    assert move_probabilities(move(parse_level(ROOM), "up"), 0.4) == pytest.approx([0.1, 0.1, 0.1, 0.7])


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
    level = "#####\n#   #\n#@$.#\n#   #\n#####"
    played = [list(solver_moves(parse_level(level), random.Random(seed), 1.0, 12)) for seed in range(20)]
    assert {len(moves) for moves in played} - {1}, "moves are random"
    for moves in played:
        assert all(moves_to_solve(each.state) for each in moves), "no move in a state without a solution"
        assert len(moves) <= 12
    assert parse_level(level) == played[0][0].state


def test_each_move_is_drawn_from_its_probabilities_in_the_order_of_moves() -> None:
    """Seeds give the same training data in every version."""
    moves = list(solver_moves(parse_level(ROOM), random.Random(3), 0.6, max_turns=12))
    assert [each.name for each in moves] == ["up", "right", "left", "right", "right"]
    rng = random.Random(3)
    for each in moves:
        assert each.probabilities == tuple(move_probabilities(each.state, 0.6))
        assert [each.name] == rng.choices(list(MOVES), each.probabilities)
    assert list(solver_moves(parse_level(ROOM), random.Random(3), 0.6, max_turns=2)) == moves[:2]
