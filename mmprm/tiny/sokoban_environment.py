"""Provide Sokoban as an environment, with one move per turn and the level as an image."""

from __future__ import annotations

from mmprm.environments.actions import ACTION, ActionReader
from mmprm.environments.interface import Observation, Transition
from mmprm.errors import DataError
from mmprm.tiny.sokoban import MOVES, SokobanState, move, moves_to_solve, parse_level
from mmprm.tiny.sokoban_image import draw_state
from mmprm.types import Problem

STEP_REWARD, BOX_REWARD, SOLVED_REWARD = -0.1, 1.0, 10.0
"""Rewards of gym-sokoban: per move, per box moved onto a goal (negative when moved off), and for solving the level."""


class SokobanEnvironment:
    """Plays the Sokoban level in `problem.extra["level"]`. The seed has no effect.

    A turn without a valid action, or a move against a wall, leaves the level unchanged and costs a move.
    """

    def __init__(self, pattern: str = ACTION) -> None:
        self._reader = ActionReader(tuple(MOVES), pattern)
        self._state: SokobanState | None = None

    @property
    def state(self) -> SokobanState:
        """Return the current state of the level."""
        assert self._state is not None, "reset comes first"
        return self._state

    def reset(self, problem: Problem, seed: int) -> Observation:
        level = problem.extra.get("level")
        if not isinstance(level, str):
            raise DataError(f"problem {problem.id}: has no level; add a column `level` in Sokoban notation")
        self._state = parse_level(level)
        return Observation((problem.question, draw_state(self._state)))

    def step(self, text: str) -> Transition:
        before, action = self.state, self._reader.index(text)
        name = None if action is None else self._reader.names[action]
        self._state = before if name is None else move(before, name)
        after = self._state
        reward = STEP_REWARD + BOX_REWARD * (after.boxes_on_goals - before.boxes_on_goals)
        reward += SOLVED_REWARD if after.solved and not before.solved else 0.0
        info = {"action": name, "success": after.solved, "moved": after != before}
        return Transition(Observation((draw_state(after),)), reward, after.solved, info=info)

    def truth(self) -> str:
        """Return what the solver knows about the current state, for display."""
        left = moves_to_solve(self.state)
        return "cannot be solved" if left is None else "solved" if not left else f"{left} moves to the solution"

    def close(self) -> None:
        self._state = None
