"""Provide Sokoban with one turn, in which the policy writes the plan for the whole level, and LMM-R1's shaped reward.

LMM-R1 (Peng et al. 2025) trains on plans: "<think> … </think><answer> Left, Up, … </answer>". Its reward is

    best return within the first 50 moves + 0.5 for the format + bonus for moves + bonus for the words of the thoughts

or 0 if the format is wrong: each of the four tags occurs once, and every move is one of four. The return counts −0.1
per move, ±1 per box moved onto or off a goal, and 10 for the solution. The bonus for n moves is 0.05·n below 20, and
1 − 0.2·((n − 20)/30)² from 20 on. If the moves repeat a sequence of up to 5 moves more than 7 times in a row, the bonus
is reduced by 0.2 and is at most 0. The bonus for words is 0.001 per word, up to 200 words; words of one character do
not count.
"""

from __future__ import annotations

from mmprm.environments.interface import Observation, Transition
from mmprm.errors import DataError
from mmprm.tiny.sokoban import MOVES, SokobanState, move, parse_level
from mmprm.tiny.sokoban_environment import BOX_REWARD, SOLVED_REWARD, STEP_REWARD
from mmprm.tiny.sokoban_image import draw_state
from mmprm.types import Problem

MAX_MOVES = 50
"""Maximum number of moves of a plan that are played."""
FORMAT_REWARD = 0.5
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_MAX_REPEATS, _MAX_REPEATED_MOVES = 7, 5


class SokobanPlanEnvironment:
    """Plays a plan for the Sokoban level in `problem.extra["level"]`. The episode ends after one turn.

    The reward is `plan_reward`.
    """

    def __init__(self) -> None:
        self._state: SokobanState | None = None

    def reset(self, problem: Problem, seed: int) -> Observation:
        level = problem.extra.get("level")
        if not isinstance(level, str):
            raise DataError(f"problem {problem.id}: has no level; add a column `level` in Sokoban notation")
        self._state = parse_level(level)
        return Observation((draw_state(self._state),))

    def step(self, text: str) -> Transition:
        state, moves = self._state, read_plan(text)
        _, solved = (0.0, False) if moves is None else play_plan(state, moves)
        info = {"action": None if moves is None else ", ".join(moves), "success": solved}
        return Transition(Observation(()), plan_reward(state, text), terminated=True, info=info)

    def close(self) -> None:
        self._state = None


def read_plan(text: str) -> list[str] | None:
    """Return the moves of a plan, or None if its format is wrong."""
    if any(text.count(tag) != 1 for tag in _TAGS):
        return None
    moves = [name.strip().lower() for name in _between(text, "<answer>", "</answer>").split(",")]
    return moves if all(name in MOVES for name in moves) else None


def plan_reward(state: SokobanState, text: str) -> float:
    """Return LMM-R1's reward of a plan; see the top of this module."""
    moves = read_plan(text)
    if moves is None:
        return 0.0
    bonus = move_bonus(moves) + word_bonus(_between(text, "<think>", "</think>"))
    return play_plan(state, moves)[0] + FORMAT_REWARD + bonus


def play_plan(state: SokobanState, moves: list[str]) -> tuple[float, bool]:
    """Play the first moves of a plan; return the highest return on the way, at least 0, and whether it solves the
    level."""
    total = best = 0.0
    for name in moves[:MAX_MOVES]:
        after = move(state, name)
        total += STEP_REWARD + BOX_REWARD * (after.boxes_on_goals - state.boxes_on_goals)
        total += SOLVED_REWARD if after.solved else 0.0
        best, state = max(best, total), after
        if state.solved:
            break
    return best, state.solved


def move_bonus(moves: list[str]) -> float:
    """Return the bonus for the number of moves, which is reduced if the moves repeat themselves."""
    count = len(moves)
    bonus = 0.05 * count if count < 20 else 1 - 0.2 * ((count - 20) / 30) ** 2
    return min(0.0, bonus - 0.2) if _repeats(moves) else bonus


def word_bonus(thoughts: str) -> float:
    """Return the bonus for the words of the thoughts."""
    return 0.001 * min(200, sum(len(word) > 1 for word in thoughts.split(" ")))


def _repeats(moves: list[str]) -> bool:
    """Return whether a sequence of up to 5 moves occurs more than 7 times in a row."""
    copies = _MAX_REPEATS + 1
    return any(
        moves[start : start + length] * copies == moves[start : start + length * copies]
        for length in range(1, _MAX_REPEATED_MOVES + 1)
        for start in range(len(moves) - length * copies + 1)
    )


def _between(text: str, begin: str, end: str) -> str:
    return text.partition(begin)[2].partition(end)[0].strip()
