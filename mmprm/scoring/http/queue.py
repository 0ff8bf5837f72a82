"""Batch concurrent requests to one scorer: requests that arrive during a batch form the next one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmprm.errors import DataError, EngineStoppedError
from mmprm.halving import run_halving
from mmprm.scoring.http.turns import FairQueue
from mmprm.types import Scorer, Solution, StepScores

ScoreResult = StepScores | Exception


@dataclass(frozen=True, slots=True)
class _Asked:
    solution: Solution
    answer: asyncio.Future[StepScores]


@dataclass
class Pace:
    """Adapts the batch size to the scorer's speed.

    `limit` is the maximum total weight of a batch. It is updated from the duration of the last batch so that a batch
    takes about `seconds`; it never exceeds `most`.
    """

    most: float = math.inf
    seconds: float = math.inf
    limit: float = math.inf

    def took(self, weight: float, solutions: int, seconds: float) -> None:
        """Update the limit from the weight, number of solutions and duration of the last batch."""
        if seconds > self.seconds and solutions > 1:
            self.limit = weight * self.seconds / seconds
        elif seconds < self.seconds / 2 and weight > self.limit / 2:
            self.limit = min(self.most, 2 * self.limit)


class ScoreQueue:
    """Batches requests from one event loop, and scores them in a separate thread.

    The thread is `thread`, or one that the queue owns. A batch holds as many waiting solutions as the pace allows, and
    clients take turns; a heavier solution is scored alone. Identical solutions in a batch are scored once. `batches`
    and `scored` count the completed batches and solutions.
    """

    def __init__(self, scorer: Scorer, pace: Pace | None = None, thread: ThreadPoolExecutor | None = None) -> None:
        self.batches = 0
        self.scored = 0
        # A scorer that reports errors per solution needs no bisection of a failed batch.
        self._score: Callable[[Sequence[Solution]], Sequence[ScoreResult]] = getattr(scorer, "score_each", scorer.score)
        self._pace = pace or Pace()
        self._thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._waiting: FairQueue[_Asked] = FairQueue()
        self._work: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Return the number of solutions waiting to be scored."""
        return len(self._waiting)

    async def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Score solutions in batches that are shared with other callers; see Scorer.score. A solution that cannot be
        scored fails only the call that submitted it."""
        scores: list[StepScores] = []
        for answer in await self.judge(solutions):
            if isinstance(answer, Exception):
                raise answer
            scores.append(answer)
        return scores

    async def score_apart(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        """Score solutions, and return a DataError in place of scores for each one that cannot be scored. Other errors
        are raised."""
        answers: list[StepScores | DataError] = []
        for answer in await self.judge(solutions):
            if isinstance(answer, Exception) and not isinstance(answer, DataError):
                raise answer
            answers.append(answer)
        return answers

    async def judge(
        self, solutions: Sequence[Solution], weights: Sequence[float] | None = None, caller: str = ""
    ) -> list[ScoreResult]:
        """Score solutions, and return an exception in place of scores for each one that failed."""
        loop = asyncio.get_running_loop()
        asked = [_Asked(solution, loop.create_future()) for solution in solutions]
        self._waiting.add(caller, zip(asked, weights or [0.0] * len(asked), strict=True))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return await asyncio.gather(*(item.answer for item in asked), return_exceptions=True)

    def close(self) -> None:
        """Wait for the running batch, then shut down the thread."""
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
            except Exception as error:  # no client may wait forever, whatever the error is
                answers = [error] * len(solutions)
            self._pace.took(weight, len(solutions), time.monotonic() - begun)
            for solution, answer in zip(solutions, answers, strict=True):
                for future in batch[solution]:
                    if future.done():  # its client has disconnected in the meantime
                        continue
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)

    def _batch(self) -> tuple[dict[Solution, list[asyncio.Future[StepScores]]], float]:
        """Take the next batch from the queue; return its solutions with the futures to complete, and its weight."""
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

    def _answers(self, solutions: list[Solution]) -> list[ScoreResult]:
        """Score a batch; if that fails, bisect it until only the faulty solutions have no scores.

        The other solutions may then be scored several times (see run_halving). If the engine has stopped, all of them
        fail.
        """
        # Any exception may be caused by one solution, for example by an image that a processor cannot process.
        return run_halving(solutions, self._scored_together, lambda _, error: error, Exception)

    def _scored_together(self, solutions: Sequence[Solution]) -> list[ScoreResult]:
        try:
            answers = list(self._score(solutions))
        except EngineStoppedError as error:
            return [error] * len(solutions)
        assert len(answers) == len(solutions), "one answer per solution"
        self.batches += 1
        self.scored += sum(isinstance(answer, StepScores) for answer in answers)
        return answers
