"""Test Sokoban: rules, exact distances, and levels with a known shortest solution."""

from __future__ import annotations

import random

import pytest

from mmprm.errors import DataError
from mmprm.tiny.sokoban import (
    MOVES,
    SokobanState,
    best_moves,
    level_text,
    losing_moves,
    make_level,
    move,
    moves_to_solve,
    parse_level,
)

PUSH = """
#####
#@$.#
#####
"""
ROOM = """
######
#    #
# $. #
#@   #
######
"""


def play(state: SokobanState, *names: str) -> SokobanState:
    for name in names:
        state = move(state, name)
    return state


def test_pushing_the_box_onto_the_goal_solves_the_level() -> None:
    state = play(parse_level(PUSH), "right")
    assert level_text(state) == "#####\n# @*#\n#####"
    assert state.solved
    assert state.boxes_on_goals == 1


@pytest.mark.parametrize("name", ["left", "up", "down"])
def test_a_move_against_a_wall_changes_nothing(name: str) -> None:
    assert move(parse_level(PUSH), name) == parse_level(PUSH)


def test_two_boxes_cannot_be_pushed() -> None:
    state = parse_level("#######\n#@$$..#\n#######")
    assert move(state, "right") == state


def test_a_box_against_a_wall_cannot_be_pushed() -> None:
    state = parse_level("#####\n#.@$#\n#####")
    assert move(state, "right") == state


def test_distances_of_a_room() -> None:
    """Moving up and then right pushes the box onto the goal."""
    state = parse_level(ROOM)
    assert moves_to_solve(state) == 2
    assert best_moves(state) == ["up"]
    assert moves_to_solve(play(state, "up", "right")) == 0
    assert best_moves(play(state, "up", "right")) == []


def test_losing_moves_lead_to_a_push_against_the_wall() -> None:
    """Moving right and then up pushes the box to the upper wall."""
    state = parse_level(ROOM)
    assert losing_moves(state) == ["right"]
    assert losing_moves(play(state, "right")) == ["up"]
    assert moves_to_solve(play(state, "right", "up")) is None
    assert losing_moves(play(state, "right", "up")) == []
    assert losing_moves(play(state, "up", "right")) == [], "the level is solved"
    assert losing_moves(parse_level(PUSH)) == [], "the box can only be pushed onto the goal"


def test_a_box_in_a_corner_is_unsolvable() -> None:
    state = play(parse_level("#####\n#   #\n#@$ #\n# . #\n#####"), "right")
    assert level_text(state) == "#####\n#   #\n# @$#\n# . #\n#####"
    assert moves_to_solve(state) is None
    assert best_moves(state) == []


def test_distances_agree_with_forward_search() -> None:
    """Checks every reachable state of a level against a forward search from that state."""
    start = make_level(random.Random(3), size=5, boxes=2, moves=range(4, 12))
    reached, queue = {start}, [start]
    while queue:
        state = queue.pop()
        for after in (move(state, name) for name in MOVES):
            if after not in reached:
                reached.add(after)
                queue.append(after)
    for state in random.Random(0).sample(sorted(reached, key=level_text), 40):
        assert moves_to_solve(state) == forward(state), level_text(state)


def forward(state: SokobanState) -> int | None:
    level, seen, distance = [state], {state}, 0
    while level:
        if any(each.solved for each in level):
            return distance
        following = {move(each, name) for each in level for name in MOVES} - seen
        seen |= following
        level, distance = list(following), distance + 1
    return None


@pytest.mark.parametrize(("size", "boxes"), [(5, 1), (6, 2), (7, 3)])
def test_a_level_has_the_wanted_number_of_moves(size: int, boxes: int) -> None:
    state = make_level(random.Random(7), size, boxes, range(5, 9))
    assert moves_to_solve(state) in range(5, 9)
    assert len(state.boxes) == boxes
    assert parse_level(level_text(state)) == state


def test_a_seed_makes_the_same_level() -> None:
    first, second = (make_level(random.Random(1), 6, 2, range(4, 10)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#####\n#@x.#\n#####", "'x' must be one of"),
        ("#####\n# $.#\n#####", "0 players, 1 boxes and 1 goals"),
        ("#####\n#@$ #\n#####", "1 players, 1 boxes and 0 goals"),
        ("#####\n@$. #\n#####", "open"),
    ],
)
def test_a_broken_level_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_level(text)


def test_impossible_levels_are_refused() -> None:
    with pytest.raises(DataError, match="no level of size=4 with boxes=1 needs 50 to 59 moves"):
        make_level(random.Random(0), 4, 1, range(50, 60))
