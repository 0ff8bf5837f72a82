"""Split failing batches in half, so that only the faulty items fail, and score solutions that way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mmprm.errors import DataError, UnknownScoresError
from mmprm.types import Scorer, Solution, StepScores

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def run_halving(
    items: Sequence[_Item],
    run: Callable[[Sequence[_Item]], Sequence[_Result]],
    failed: Callable[[_Item, Exception], _Result],
    errors: type[Exception],
) -> list[_Result]:
    """Call `run` on the items, halve each failing batch and retry both parts, and return one result per item, in order.

    If `run` raises one of `errors` for a batch, each half is run again. An item that fails by itself gets the result
    `failed(item, error)`. Every other item runs at most 1 + ⌈log2(len(items))⌉ times.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except errors as error:
        if len(items) == 1:
            return [failed(items[0], error)]
    middle = len(items) // 2
    return [
        *run_halving(items[:middle], run, failed, errors),
        *run_halving(items[middle:], run, failed, errors),
    ]


def score_unless_unknown(scorer: Scorer, solutions: Sequence[Solution]) -> list[StepScores | UnknownScoresError]:
    """Score solutions, and return an UnknownScoresError in place of scores that a thinking judge could not give.

    Raises the DataError of a solution that cannot be scored for another reason.
    """
    own: Callable[[Sequence[Solution]], list[StepScores | DataError]] = getattr(scorer, "score_each", scorer.score)
    answers: list[StepScores | UnknownScoresError] = []
    for answer in own(solutions):
        if isinstance(answer, DataError) and not isinstance(answer, UnknownScoresError):
            raise answer
        answers.append(answer)
    return answers


def score_each(scorer: Scorer, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
    """Score solutions, and return a DataError in place of scores for each one that cannot be scored.

    Uses the scorer's own `score_each` if it has one, and otherwise halves the batches that fail.
    """
    own: Callable[[Sequence[Solution]], list[StepScores | DataError]] | None = getattr(scorer, "score_each", None)
    if own is not None:
        return own(solutions)
    return run_halving(solutions, scorer.score, lambda _, error: error, DataError)
