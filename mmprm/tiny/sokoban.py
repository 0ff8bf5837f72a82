"""Define the Sokoban world: rules, exact distances to a solution, and levels made by playing backwards.

A level is text in the usual notation, one line per row:

    #####      # wall    . goal               * box on a goal
    #@$.#      $ box     @ player             + player on a goal
    #####

A state is (player, boxes). A push can make a level unsolvable for ever, for example a box in a corner, so an episode
has a first losing move, and the distances below know it.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mmprm.errors import DataError

Cell = tuple[int, int]
"""A (row, column) pair, counted from the upper left corner."""

MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_MEANING = {"#": "wall", " ": "", "-": "", ".": "goal", "$": "box", "*": "box goal", "@": "player", "+": "player goal"}


@dataclass(frozen=True, slots=True)
class LevelLayout:
    """Holds the parts of a level that never move."""

    height: int
    width: int
    walls: frozenset[Cell]
    goals: frozenset[Cell]

    def floor(self) -> list[Cell]:
        """Return all cells without a wall, row by row."""
        cells = [(row, column) for row in range(self.height) for column in range(self.width)]
        return [cell for cell in cells if cell not in self.walls]


@dataclass(frozen=True, slots=True)
class SokobanState:
    """Holds a level in play."""

    layout: LevelLayout
    player: Cell
    boxes: frozenset[Cell]

    @property
    def solved(self) -> bool:
        """Return whether every box is on a goal."""
        return self.boxes == self.layout.goals

    @property
    def boxes_on_goals(self) -> int:
        return len(self.boxes & self.layout.goals)


def parse_level(text: str) -> SokobanState:
    """Parse a level. Raises DataError unless it has one player, as many boxes as goals, and a closed wall."""
    rows = text.strip("\n").split("\n")
    found: dict[str, set[Cell]] = {"wall": set(), "goal": set(), "box": set(), "player": set()}
    for row, line in enumerate(rows):
        for column, sign in enumerate(line):
            if sign not in _MEANING:
                raise DataError(f"level row {row}: {sign!r} must be one of {''.join(_MEANING)}; correct the level")
            for kind in _MEANING[sign].split():
                found[kind].add((row, column))
    players, boxes, goals = found["player"], found["box"], found["goal"]
    if len(players) != 1 or not boxes or len(boxes) != len(goals):
        raise DataError(
            f"level has {len(players)} players, {len(boxes)} boxes and {len(goals)} goals; it needs one player, and as "
            "many boxes as goals: correct the level"
        )
    layout = LevelLayout(len(rows), max(map(len, rows)), frozenset(found["wall"]), frozenset(goals))
    state = SokobanState(layout, *players, frozenset(boxes))
    if any(not _inside(layout, cell) for cell in _region(layout, state.player)):
        raise DataError("level is open: the player can leave it; close the wall")
    return state


def level_text(state: SokobanState) -> str:
    """Write a state in the notation of parse_level."""
    signs = {frozenset(kinds.split()): sign for sign, kinds in _MEANING.items() if sign != "-"}

    def sign(cell: Cell) -> str:
        kinds = {
            "wall": cell in state.layout.walls,
            "goal": cell in state.layout.goals,
            "box": cell in state.boxes,
            "player": cell == state.player,
        }
        return signs[frozenset(kind for kind, present in kinds.items() if present)]

    layout = state.layout
    return "\n".join("".join(sign((row, column)) for column in range(layout.width)) for row in range(layout.height))


def move(state: SokobanState, name: str) -> SokobanState:
    """Apply a move; a move against a wall, or against a box that cannot be pushed, changes nothing."""
    step = MOVES[name]
    ahead = _add(state.player, step)
    if ahead in state.layout.walls:
        return state
    if ahead not in state.boxes:
        return replace(state, player=ahead)
    behind = _add(ahead, step)
    if behind in state.layout.walls or behind in state.boxes:
        return state
    return replace(state, player=ahead, boxes=state.boxes - {ahead} | {behind})


def moves_to_solve(state: SokobanState) -> int | None:
    """Return the smallest number of moves that solves the level, or None if it can no longer be solved."""
    return _distances(state.layout).get((state.player, state.boxes))


def best_moves(state: SokobanState) -> list[str]:
    """Return the moves that begin a shortest solution, in the order of MOVES; [] if there is none or it is solved."""
    left = moves_to_solve(state)
    if not left:
        return []
    return [name for name in MOVES if moves_to_solve(move(state, name)) == left - 1]


@functools.lru_cache(maxsize=256)
def _distances(layout: LevelLayout) -> dict[tuple[Cell, frozenset[Cell]], int]:
    """Return the distance of every solvable state, by breadth-first search backwards from all solved states."""
    boxes = layout.goals
    distances = {(player, boxes): 0 for player in layout.floor() if player not in boxes}
    queue = deque(distances)
    while queue:
        state = queue.popleft()
        for before in _before(layout, *state):
            if before not in distances:
                distances[before] = distances[state] + 1
                queue.append(before)
    return distances


def _before(layout: LevelLayout, player: Cell, boxes: frozenset[Cell]) -> Iterator[tuple[Cell, frozenset[Cell]]]:
    """Yield the states from which one move leads to this state: a step back, without or with a pulled box."""
    for down, right in MOVES.values():
        back = player[0] - down, player[1] - right
        if back in layout.walls or back in boxes or not _inside(layout, back):
            continue
        yield back, boxes
        pushed = player[0] + down, player[1] + right
        if pushed in boxes:
            yield back, boxes - {pushed} | {player}


def make_level(rng: random.Random, size: int, boxes: int, moves: range) -> SokobanState:
    """Make a level of size × size cells, walls included, whose shortest solution has a number of moves in `moves`.

    Walls are drawn at random, boxes start on their goals, and the level is played backwards. Raises DataError if no
    such level is found in 1,000 drawings.
    """
    cells = [(row, column) for row in range(1, size - 1) for column in range(1, size - 1)]
    border = {(row, column) for row in range(size) for column in range(size)} - set(cells)
    for _ in range(1000):
        inner = {cell for cell in cells if rng.random() < 0.12}
        free = [cell for cell in cells if cell not in inner]
        if len(free) < boxes + 2:
            continue
        layout = LevelLayout(size, size, frozenset(border | inner), frozenset(rng.sample(free, boxes)))
        starts = [state for state, distance in _distances(layout).items() if distance in moves]
        # A level is interesting if no box is on its goal yet, but small levels may have no such start.
        starts = [each for each in starts if not each[1] & layout.goals] or starts
        if starts:
            player, at = rng.choice(sorted(starts, key=lambda each: (each[0], sorted(each[1]))))
            return SokobanState(layout, player, at)
    raise DataError(
        f"no level of size={size} with boxes={boxes} needs {moves.start} to {moves.stop - 1} moves; use fewer moves or "
        "a larger size"
    )


def _region(layout: LevelLayout, start: Cell) -> set[Cell]:
    """Return the cells that can be reached from `start` without boxes, including the first ones outside."""
    found, queue = {start}, [start]
    while queue:
        cell = queue.pop()
        if not _inside(layout, cell):
            continue
        for step in MOVES.values():
            near = _add(cell, step)
            if near not in layout.walls and near not in found:
                found.add(near)
                queue.append(near)
    return found


def _inside(layout: LevelLayout, cell: Cell) -> bool:
    return 0 <= cell[0] < layout.height and 0 <= cell[1] < layout.width


def _add(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]
