"""One scorer for many callers: what they ask while it works is scored together, next."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmprm.errors import DataError, EngineStoppedError
from mmprm.scoring.http.turns import Turns
from mmprm.types import Scorer, Solution, StepScores

Answer = StepScores | Exception


@dataclass(frozen=True, slots=True)
class _Asked:
    solution: Solution
    answer: asyncio.Future[StepScores]


@dataclass
class Pace:
    """How much is given to the scorer at once: a total weight up to `limit`, which follows from how long the last batch
    took, so that a batch takes about `seconds`, and up to `most`."""

    most: float = math.inf
    seconds: float = math.inf
    limit: float = math.inf

    def took(self, weight: float, solutions: int, seconds: float) -> None:
        if seconds > self.seconds and solutions > 1:
            self.limit = weight * self.seconds / seconds
        elif seconds < self.seconds / 2 and weight > self.limit / 2:
            self.limit = min(self.most, 2 * self.limit)


class ScoreQueue:
    """For one event loop, which goes on meanwhile: the scorer runs in one thread, `thread` or one of the queue's own.

    A batch holds what waits, the callers taking turns, as much as the pace allows, and a heavier solution alone; equal
    solutions of a batch are scored once. `batches` and `scored` count what the scorer has answered.
    """

    def __init__(self, scorer: Scorer, pace: Pace | None = None, thread: ThreadPoolExecutor | None = None) -> None:
        self.batches = 0
        self.scored = 0
        # A scorer that tells which solutions it refuses needs no halving for them.
        self._score: Callable[[Sequence[Solution]], Sequence[Answer]] = getattr(scorer, "score_each", scorer.score)
        self._pace = pace or Pace()
        self._thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._waiting: Turns[_Asked] = Turns()
        self._work: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """As Scorer.score. A solution that cannot be scored fails the call that brought it, and no other."""
        scores: list[StepScores] = []
        for answer in await self.judge(solutions):
            if isinstance(answer, Exception):
                raise answer
            scores.append(answer)
        return scores

    async def score_apart(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        """A solution that cannot be scored gets the reason; other errors are raised."""
        answers: list[StepScores | DataError] = []
        for answer in await self.judge(solutions):
            if isinstance(answer, Exception) and not isinstance(answer, DataError):
                raise answer
            answers.append(answer)
        return answers

    async def judge(
        self, solutions: Sequence[Solution], weights: Sequence[float] | None = None, caller: str = ""
    ) -> list[Answer]:
        """Scores for each solution, or why it has none."""
        loop = asyncio.get_running_loop()
        asked = [_Asked(solution, loop.create_future()) for solution in solutions]
        self._waiting.add(caller, zip(asked, weights or [0.0] * len(asked), strict=True))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return await asyncio.gather(*(item.answer for item in asked), return_exceptions=True)

    def close(self) -> None:
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            batch, weight = self._batch()
            if not batch:
                return
            solutions = list(batch)
            begun = time.monotonic()
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, solutions)
            except Exception as error:  # Whatever it is, nobody must wait for ever.
                answers = [error] * len(solutions)
            self._pace.took(weight, len(solutions), time.monotonic() - begun)
            for solution, answer in zip(solutions, answers, strict=True):
                for future in batch[solution]:
                    if future.done():  # its caller has gone meanwhile
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)

    def _batch(self) -> tuple[dict[Solution, list[asyncio.Future[StepScores]]], float]:
        """Who waits for each solution of the next batch, and their total weight."""
        batch: dict[Solution, list[asyncio.Future[StepScores]]] = {}
        total = 0.0
        while self._waiting:
            item, weight = self._waiting.peek()
            gone, known = item.answer.done(), item.solution in batch
            if not gone and not known and batch and total + weight > self._pace.limit:
                break
            self._waiting.pop(free=gone)
            if gone:
                continue
            total += 0.0 if known else weight
            batch.setdefault(item.solution, []).append(item.answer)
        return batch, total

    def _answers(self, solutions: list[Solution]) -> list[Answer]:
        """Halves of a batch that fails are scored again, so that in the end only the solution at fault has no scores;
        the others are computed up to three times then. An engine that has stopped fails all."""
        try:
            answers = list(self._score(solutions))
            assert len(answers) == len(solutions), "one answer per solution"
        except EngineStoppedError as error:
            return [error] * len(solutions)
        except Exception as error:  # also what a processor raises for a picture that it cannot take
            if len(solutions) == 1:
                return [error]
            middle = len(solutions) // 2
            return [*self._answers(solutions[:middle]), *self._answers(solutions[middle:])]
        self.batches += 1
        self.scored += sum(isinstance(answer, StepScores) for answer in answers)
        return answers
