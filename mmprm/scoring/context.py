"""Check that solutions fit the model's context and that their scores are finite."""

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
    """Return the context length in tokens from a model's transformers configuration."""
    return config.get_text_config().max_position_embeddings


def check_length(solution: Solution, tokens: int, limit: int) -> None:
    """Raise DataError if the length of a solution, `tokens`, exceeds `limit`."""
    if tokens > limit:
        raise DataError(
            f"problem {solution.problem.id}: a solution of {len(solution.steps)} steps has {tokens} tokens, but the "
            f"PRM reads at most {limit}; shorten it, remove it, or set scorer.too_long=cut"
        )


def fitting(solution: Solution, tokens: Callable[[Solution], int], limit: int, too_long: TooLong) -> Solution:
    """Return the solution, truncated if necessary to at most `limit` tokens.

    First, an episode loses the observation after its last turn, which costs no score. With `too_long="refuse"`, a
    solution that is still too long raises DataError. With "cut", the question, all images and as many whole steps from
    the beginning as fit remain; DataError is raised if not even the first step fits.
    """
    length = tokens(solution)
    if length > limit and len(solution.observations) > len(solution.steps):
        solution = replace(solution, observations=solution.observations[: len(solution.steps)])
        length = tokens(solution)
    if length <= limit:
        return solution
    if too_long == "refuse":
        check_length(solution, length, limit)
    # Counting tokens is expensive, and the number of tokens grows with the number of steps: search by bisection.
    kept = bisect_right(
        range(1, len(solution.steps)),
        limit,
        key=lambda count: tokens(solution.first_steps(count)),
    )
    if not kept:
        raise DataError(
            f"problem {solution.problem.id}: its question with the first step exceeds the {limit} tokens that the PRM "
            "reads; remove it"
        )
    return solution.first_steps(kept)


def score_fitting(
    solutions: Sequence[Solution],
    fit: Callable[[Solution], Solution],
    score: Callable[[Sequence[Solution]], list[StepScores]],
) -> list[StepScores | DataError]:
    """Call `score` once for all solutions that `fit` accepts; for every other solution, return the DataError that `fit`
    raised."""
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
    """Return the scores of all solutions, or raise the first DataError in the list."""
    scores = []
    for answer in answers:
        if isinstance(answer, DataError):
            raise answer
        scores.append(answer)
    return scores


def step_scores(values: Iterable[float]) -> StepScores:
    """Convert a model's outputs to StepScores.

    Raises CheckpointError if one is not finite, because a comparison with NaN would pass as "no error".
    """
    scores = StepScores(tuple(values))
    if not all(map(math.isfinite, scores.scores)):
        raise CheckpointError(
            "the process reward model returned a score that is not finite; set scorer.dtype to bfloat16 or float32, "
            "and check the weights"
        )
    return scores
