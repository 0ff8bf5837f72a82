"""Generate Sokoban levels as problems for the built-in environment, in splits that never share a level."""

from __future__ import annotations

import hashlib
import math
import random

from mmprm.errors import DataError
from mmprm.tiny.sokoban import (
    MOVES,
    LevelLayout,
    SokobanState,
    best_moves,
    level_text,
    make_level,
    move,
    moves_to_solve,
    parse_level,
)
from mmprm.tiny.sokoban_image import draw_state
from mmprm.tiny.sokoban_player import action_text
from mmprm.tiny.world import SPLITS, WorldSplit
from mmprm.types import Problem

QUESTION = (
    "Push every box onto a goal. You can push a box, but not pull it. Answer with one move: "
    + ", ".join(map(action_text, list(MOVES)[:-1]))
    + f" or {action_text(list(MOVES)[-1])}.\n"
)

_ATTEMPTS_PER_LEVEL = 20
_MAX_STATES = 500_000


def make_sokoban_problems(
    count: int, seed: int, split: WorldSplit, size: int, boxes: int, solutions: bool = False
) -> list[Problem]:
    """Generate `count` distinct levels of a split, each with size × size cells and the given number of boxes.

    A shortest solution has 3 to 10 moves per box. A hash of a level's walls and goals determines its split, so the
    splits share no layout. The columns `environment`, `level`, `boxes` and `moves` (the length of a shortest solution)
    are in `extra`; with `solutions`, a shortest solution is in `solution`. Raises DataError if the split has too few
    levels, or if a level has too many states for the solver.
    """
    cells = (size - 2) ** 2
    states = math.comb(cells, boxes) * cells
    if states > _MAX_STATES:
        raise DataError(
            f"--size={size} with --boxes={boxes} has up to {states:,} states, and the solver keeps at most "
            f"{_MAX_STATES:,}; lower one of them"
        )
    rng = random.Random(f"sokoban/{seed}/{split}/{size}/{boxes}")
    found: dict[str, Problem] = {}
    for _ in range(count * _ATTEMPTS_PER_LEVEL):
        state = make_split_level(rng, split, size, boxes)
        problem = _problem(level_text(state), boxes, solutions)
        found.setdefault(problem.id, problem)
        if len(found) == count:
            return list(found.values())
    raise DataError(
        f"--size={size} with --boxes={boxes} gave only {len(found)} distinct levels of the {split} split; lower "
        "--count, or raise --size"
    )


def make_split_level(rng: random.Random, split: WorldSplit, size: int, boxes: int) -> SokobanState:
    """Generate one level of a split, whose shortest solution has 3 to 10 moves per box."""
    moves = range(3 * boxes, 10 * boxes + 1)
    return make_level(rng, size, boxes, moves, accept=lambda layout: _is_in(layout, split))


def _is_in(layout: LevelLayout, split: WorldSplit) -> bool:
    parts = repr((layout.height, layout.width, sorted(layout.walls), sorted(layout.goals)))
    return int(hashlib.sha256(parts.encode()).hexdigest(), 16) % 100 in SPLITS[split]


def solve_level(text: str) -> list[str]:
    """Return a shortest solution of a solvable level as a list of move names."""
    state, names = parse_level(text), []
    while not state.solved:
        names.append(best_moves(state)[0])
        state = move(state, names[-1])
    return names


def _problem(text: str, boxes: int, solutions: bool) -> Problem:
    state = parse_level(text)
    return Problem(
        id=hashlib.sha256(text.encode()).hexdigest()[:16],
        question=QUESTION,
        answer="",
        images=(draw_state(state),),
        solution="".join(map(action_text, solve_level(text))) if solutions else None,
        extra={"environment": "sokoban", "level": text, "boxes": boxes, "moves": moves_to_solve(state)},
    )
