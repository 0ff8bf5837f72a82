"""Score episodes of Sokoban: solve rate, moves beyond the optimum, the first losing turn, and MageBench's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from mmprm.environments.interface import Transition
from mmprm.errors import DataError
from mmprm.metrics import NO_ERROR
from mmprm.tiny.sokoban import SokobanState, moves_to_solve, parse_level
from mmprm.tiny.sokoban_environment import BOX_REWARD, SOLVED_REWARD, STEP_REWARD, SokobanEnvironment
from mmprm.tiny.sokoban_player import state_after
from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class SokobanMetrics:
    """Holds the metrics of several episodes.

    `lost_rate` is the share of episodes with a push after which the level cannot be solved. `moves_over_optimum` is the
    mean over solved episodes, None if there are none. `magebench` is the mean of magebench_score.
    """

    episodes: int
    solve_rate: float
    lost_rate: float
    moves_over_optimum: float | None
    magebench: float


def sokoban_metrics(episodes: Sequence[tuple[Problem, Sequence[str]]]) -> SokobanMetrics:
    """Compute the metrics of episodes, each given as its problem and the policy's texts, one per turn.

    An episode with one move per turn gives MageBench's Sokoban-Online score. For Sokoban-Global, pass the moves of the
    plan that the policy wrote at once, as one text each. Texts after the solution are ignored, because the level has
    ended. Raises DataError if there are no episodes, or if a level cannot be solved from its start.
    """
    if not episodes:
        raise DataError("there are no episodes to score; play at least one")
    over: list[int] = []
    lost, scores = 0, []
    for problem, texts in episodes:
        start, optimum = parse_level(problem.extra["level"]), shortest_solution(problem)
        played = _played(problem, texts)
        lost += moves_to_solve(state_after(problem.extra["level"], list(texts[: len(played)]))) is None
        if played and played[-1].terminated:
            over.append(len(played) - optimum)
        scores.append(magebench_score([transition.reward for transition in played], best_return(start)))
    count = len(scores)
    mean_over = sum(over) / len(over) if over else None
    return SokobanMetrics(count, len(over) / count, lost / count, mean_over, sum(scores) / count)


def shortest_solution(problem: Problem) -> int:
    """Return the number of moves of a shortest solution, at least 1. Raises DataError if there is none."""
    level = problem.extra.get("level")
    if not isinstance(level, str):
        raise DataError(f"problem {problem.id}: has no level; add a column `level` in Sokoban notation")
    moves = moves_to_solve(parse_level(level))
    if not moves:
        why = "cannot be solved" if moves is None else "is solved before the first move"
        raise DataError(f"problem {problem.id}: its level {why}; remove it")
    return moves


def magebench_score(rewards: Sequence[float], upper_bound: float) -> float:
    """Return MageBench's score of an episode: 100 + 5 (max(0, max_t r_1 + … + r_t) − U).

    U is the highest possible return of the level. A solved level scores 100 minus 0.5 for each move beyond the optimum.
    Source: microsoft/MageBench, env/sokoban_env.py, which uses it for Sokoban-Global (a plan written at once) and
    Sokoban-Online (one move per turn, at most 10 turns by default).
    """
    return 100 + 5 * (max(0.0, *accumulate(rewards), 0.0) - upper_bound)


def best_return(state: SokobanState) -> float:
    """Return the return of a shortest solution: 10 + boxes to be moved onto goals − 0.1 × number of moves.

    No other episode has a higher return, because moving a box off its goal and back only adds moves.
    """
    moves = moves_to_solve(state)
    assert moves is not None, "the level can be solved"
    return SOLVED_REWARD + BOX_REWARD * (len(state.boxes) - state.boxes_on_goals) + STEP_REWARD * moves


def first_losing_turn(level: str, texts: Sequence[str], max_turns: int) -> int:
    """Return the index of the first turn after which the level cannot be solved within the turn limit, or NO_ERROR."""
    turns = range(len(texts))
    return next((turn for turn in turns if not is_solvable(level, texts[: turn + 1], max_turns)), NO_ERROR)


def is_solvable(level: str, texts: Sequence[str], max_turns: int) -> bool:
    """Return whether the level can still be solved within the turn limit after the given turns."""
    left = moves_to_solve(state_after(level, list(texts)))
    return left is not None and left <= max_turns - len(texts)


def _played(problem: Problem, texts: Sequence[str]) -> list[Transition]:
    """Return the transitions of an episode, up to the one that solves the level."""
    environment, played = SokobanEnvironment(), []
    environment.reset(problem, 0)
    for text in texts:
        played.append(environment.step(text))
        if played[-1].ended:
            break
    return played
