"""Write episodes of Sokoban that the solver plays, as conversations from which `mmprm sft` learns to play."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from mmprm.data.images import write_image
from mmprm.files import whole_file
from mmprm.tiny.sokoban import parse_level
from mmprm.tiny.sokoban_image import draw_state
from mmprm.tiny.sokoban_player import SolverMove, action_text, solver_moves
from mmprm.types import Problem

MAX_MOVES_PER_BOX = 12
"""Maximum number of moves of an episode, per box."""


def write_play(path: Path, levels: list[Problem], seed: int, mistake_rate: float) -> None:
    """Write an episode per level: a user turn for each observation, and an assistant turn for each move.

    Images are written to the folder `images/` next to the file.
    """
    with whole_file(path) as file:
        for problem in levels:
            rng = random.Random(f"{seed}/{problem.id}")
            start = parse_level(problem.extra["level"])
            moves = list(solver_moves(start, rng, mistake_rate, MAX_MOVES_PER_BOX * len(start.boxes)))
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
