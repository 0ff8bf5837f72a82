"""Write episodes of Sokoban that the solver plays, as conversations from which `mmprm sft` learns to play."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.data.images import write_image
from mmprm.files import whole_file
from mmprm.tiny.sokoban import MOVES, SokobanState, move, moves_to_solve, parse_level
from mmprm.tiny.sokoban_image import draw_state
from mmprm.tiny.sokoban_player import action_text, move_probabilities
from mmprm.types import Problem

MAX_MOVES_PER_BOX = 12
"""Maximum number of moves of an episode, per box."""


@dataclass(frozen=True, slots=True)
class SolverMove:
    """Holds a move of the solver and the state before it."""

    state: SokobanState
    name: str


def solver_moves(level: str, rng: random.Random, mistake_rate: float) -> Iterator[SolverMove]:
    """Play a level until it is solved, cannot be solved any more, or takes too many moves.

    A move is random with probability `mistake_rate`, and otherwise the first one of a shortest solution.
    """
    state = parse_level(level)
    for _ in range(MAX_MOVES_PER_BOX * len(state.boxes)):
        if not moves_to_solve(state):
            return
        (name,) = rng.choices(list(MOVES), move_probabilities(state, mistake_rate))
        yield SolverMove(state, name)
        state = move(state, name)


def write_play(path: Path, levels: list[Problem], seed: int, mistake_rate: float) -> None:
    """Write an episode per level: a user turn for each observation, and an assistant turn for each move.

    Images are written to the folder `images/` next to the file.
    """
    with whole_file(path) as file:
        for problem in levels:
            rng = random.Random(f"{seed}/{problem.id}")
            moves = list(solver_moves(problem.extra["level"], rng, mistake_rate))
            images = [write_image(draw_state(each.state), path.parent) for each in moves]
            row = {"id": problem.id, "messages": _messages(problem.question, moves), "images": images}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _messages(question: str, moves: list[SolverMove]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, each in enumerate(moves):
        asked = [{"type": "text", "text": question}] if number == 0 else []
        found.append({"role": "user", "content": [*asked, {"type": "image"}]})
        found.append({"role": "assistant", "content": action_text(each.name)})
    return found
