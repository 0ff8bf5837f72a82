"""One scorer for many callers: what they ask while it works is scored together, next."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmprm.errors import DataError, EngineStoppedError
from mmprm.types import Scorer, Solution, StepScores

Answer = StepScores | Exception


@dataclass(frozen=True, slots=True)
class _Asked:
    solution: Solution
    weight: float
    answer: asyncio.Future[StepScores]


class ScoreQueue:
    """For one event loop, which goes on meanwhile: the scorer runs in one thread, `thread` or one of the queue's own.

    A batch holds what waits, in order, up to the total weight `most`, and a heavier solution alone; equal solutions of
    a batch are scored once. `batches` and `scored` count what the scorer has answered.
    """

    def __init__(self, scorer: Scorer, most: float = math.inf, thread: ThreadPoolExecutor | None = None) -> None:
        self.batches = 0
        self.scored = 0
        self._scorer = scorer
        self._most = most
        self._thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._waiting: deque[_Asked] = deque()
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

    async def judge(self, solutions: Sequence[Solution], weights: Sequence[float] | None = None) -> list[Answer]:
        """Scores for each solution, or why it has none."""
        loop = asyncio.get_running_loop()
        asked = [
            _Asked(solution, weight, loop.create_future())
            for solution, weight in zip(solutions, weights or [0.0] * len(solutions), strict=True)
        ]
        self._waiting.extend(asked)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return await asyncio.gather(*(item.answer for item in asked), return_exceptions=True)

    def close(self) -> None:
        self._thread.shutdown()

    async def _run(self) -> None:
        while batch := self._batch():
            solutions = list(batch)
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, solutions)
            except Exception as error:  # Whatever it is, nobody must wait for ever.
                answers = [error] * len(solutions)
            for solution, answer in zip(solutions, answers, strict=True):
                for future in batch[solution]:
                    if future.done():  # its caller has gone meanwhile
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)

    def _batch(self) -> dict[Solution, list[asyncio.Future[StepScores]]]:
        batch: dict[Solution, list[asyncio.Future[StepScores]]] = {}
        weight = 0.0
        while self._waiting and (not batch or weight + self._waiting[0].weight <= self._most):
            item = self._waiting.popleft()
            if item.answer.done():
                continue
            if item.solution not in batch:
                weight += item.weight
            batch.setdefault(item.solution, []).append(item.answer)
        return batch

    def _answers(self, solutions: list[Solution]) -> list[Answer]:
        """Halves of a batch that fails are scored again, so that in the end only the solution at fault has no scores;
        the others are computed up to three times then. An engine that has stopped fails all."""
        try:
            scores = self._scorer.score(solutions)
            assert len(scores) == len(solutions), "one StepScores a solution"
        except EngineStoppedError as error:
            return [error] * len(solutions)
        except Exception as error:  # also what a processor raises for a picture that it cannot take
            if len(solutions) == 1:
                return [error]
            middle = len(solutions) // 2
            return [*self._answers(solutions[:middle]), *self._answers(solutions[middle:])]
        self.batches, self.scored = self.batches + 1, self.scored + len(solutions)
        return list(scores)
