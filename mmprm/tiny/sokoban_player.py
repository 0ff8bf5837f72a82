"""Play Sokoban with the solver and a known rate of mistakes: a policy without a model, for tests and training data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mmprm.environments.actions import ActionReader
from mmprm.environments.episode import Action, TurnRequest
from mmprm.tiny.sokoban import MOVES, SokobanState, best_moves, losing_moves, move, moves_to_solve, parse_level

_READER = ActionReader(tuple(MOVES))


class SolverPlayer:
    """Plays the first move of a shortest solution or, with probability `mistake_rate`, of a shortest path to a state
    that cannot be solved.

    In such a state, all moves are random. Each token id is the index of a move in MOVES.
    """

    def __init__(self, mistake_rate: float) -> None:
        self._mistake_rate = mistake_rate

    async def act(self, request: TurnRequest) -> Action:
        """Return the next move; see TurnSampler."""
        rng = random.Random(request.seed)
        state = state_after(request.problem.extra["level"], [action.text for action in request.actions])
        (name,) = rng.choices(list(MOVES), move_probabilities(state, self._mistake_rate))
        return Action(action_text(name), (list(MOVES).index(name),), token_count=1)


@dataclass(frozen=True, slots=True)
class SolverMove:
    """Holds a move of SolverPlayer, the state before it, and the probability of each move in that state."""

    state: SokobanState
    name: str
    probabilities: tuple[float, ...]


def solver_moves(start: SokobanState, rng: random.Random, mistake_rate: float, max_turns: int) -> Iterator[SolverMove]:
    """Play as SolverPlayer until the level is solved, cannot be solved any more, or `max_turns` moves are made."""
    state = start
    for _ in range(max_turns):
        if not moves_to_solve(state):
            return
        probabilities = tuple(move_probabilities(state, mistake_rate))
        (name,) = rng.choices(list(MOVES), probabilities)
        yield SolverMove(state, name, probabilities)
        state = move(state, name)


def move_probabilities(state: SokobanState, mistake_rate: float) -> list[float]:
    """Return the probability of each move of SolverPlayer, in the order of MOVES.

    The probability of move a is (1 - m) [a is best] / number of best moves + m [a loses] / number of losing moves, with
    the mistake rate m; see best_moves and losing_moves. Without a losing move, m is 0. In a level that cannot be
    solved, the probability is 1/4.
    """
    best, losing = best_moves(state), losing_moves(state)
    if not best:
        return [1 / len(MOVES)] * len(MOVES)
    rate = mistake_rate if losing else 0
    return [(1 - rate) * (name in best) / len(best) + rate * (name in losing) / max(1, len(losing)) for name in MOVES]


def state_after(level: str, texts: list[str]) -> SokobanState:
    """Return the state of a level after the moves that the texts name; a text without a move changes nothing."""
    state = parse_level(level)
    for text in texts:
        index = _READER.index(text)
        state = state if index is None else move(state, _READER.names[index])
    return state


def action_text(name: str) -> str:
    """Format a move as the environment's default pattern expects it."""
    return f"<action>{name}</action>"
