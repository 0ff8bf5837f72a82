"""What every scorer checks: the longest solution that a PRM can read, and that its scores are numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from mmprm.errors import CheckpointError, DataError
from mmprm.types import Solution, StepScores

TooLong = Literal["refuse", "cut"]


def context_length(config: Any) -> int:
    """Positions of a transformers configuration."""
    return config.get_text_config().max_position_embeddings


def check_length(solution: Solution, tokens: int, limit: int) -> None:
    if tokens > limit:
        raise DataError(
            f"problem {solution.problem.id}: a solution of {len(solution.steps)} steps has {tokens} tokens, the PRM "
            f"reads at most {limit}; shorten it, leave it out, or set scorer.too_long=cut"
        )


def fitting(solution: Solution, tokens: Callable[[Solution], int], limit: int, too_long: TooLong) -> Solution:
    """The solution where it fits. A longer one raises DataError; to be cut, it keeps as many of its first steps as fit,
    whole, with the question and all pictures, and raises DataError where not even one does."""
    length = tokens(solution)
    if length <= limit:
        return solution
    if too_long == "refuse":
        check_length(solution, length, limit)
    kept = bisect_right(
        range(1, len(solution.steps)),
        limit,
        key=lambda count: tokens(replace(solution, steps=solution.steps[:count])),
    )
    if not kept:
        raise DataError(
            f"problem {solution.problem.id}: its question with the first step is longer than the {limit} tokens that "
            "the PRM reads; leave it out"
        )
    return replace(solution, steps=solution.steps[:kept])


def score_fitting(
    solutions: Sequence[Solution],
    fit: Callable[[Solution], Solution],
    score: Callable[[Sequence[Solution]], list[StepScores]],
) -> list[StepScores | DataError]:
    """Score the solutions that `fit` lets pass, all together; the others get its DataError."""
    answers: dict[int, StepScores | DataError] = {}
    fitted: dict[int, Solution] = {}
    for index, solution in enumerate(solutions):
        try:
            fitted[index] = fit(solution)
        except DataError as error:
            answers[index] = error
    answers |= zip(fitted, score(list(fitted.values())), strict=True)
    return [answers[index] for index in range(len(solutions))]


def all_scored(answers: Iterable[StepScores | DataError]) -> list[StepScores]:
    """Raise the first DataError among the answers, if there is one."""
    scores = []
    for answer in answers:
        if isinstance(answer, DataError):
            raise answer
        scores.append(answer)
    return scores


def step_scores(values: Iterable[float]) -> StepScores:
    """Raises CheckpointError for what is no number: a comparison with it would pass as "no error"."""
    scores = StepScores(tuple(values))
    if not all(map(math.isfinite, scores.scores)):
        raise CheckpointError(
            "the process reward model gave a score that is no number; set scorer.dtype to bfloat16 or float32, and "
            "check the weights"
        )
    return scores
