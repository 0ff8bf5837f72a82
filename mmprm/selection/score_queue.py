"""One scorer for many searches: what they ask while it works is scored together, next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mmprm.errors import MmprmError
from mmprm.types import Scorer, Solution, Steps, StepScores

_Call = tuple[Sequence[Solution], "asyncio.Future[list[StepScores]]"]


class ScoreQueue:
    """For one event loop. The scorer runs in a thread of its own, so that sampling goes on meanwhile; equal solutions
    of a batch are scored once. `batches` and `scored` count what the scorer was given."""

    def __init__(self, scorer: Scorer) -> None:
        self.batches = 0
        self.scored = 0
        self._scorer = scorer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._waiting: list[_Call] = []
        self._work: asyncio.Task[None] | None = None

    async def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """As Scorer.score. A solution that cannot be scored fails the call that brought it, and no other."""
        if not solutions:
            return []
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((solutions, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return await answer

    def close(self) -> None:
        self._thread.shutdown()

    async def _run(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting, []
            await self._answer(calls)

    async def _answer(self, calls: Sequence[_Call]) -> None:
        asked = {_key(solution): solution for solutions, _ in calls for solution in solutions}
        try:
            scores = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._scorer.score, list(asked.values())
            )
        except Exception as error:  # Whatever it is, nobody must wait for ever.
            if isinstance(error, MmprmError) and len(calls) > 1:
                for call in calls:
                    await self._answer([call])
            else:
                for _, answer in calls:
                    if not answer.done():
                        answer.set_exception(error)
            return
        self.batches, self.scored = self.batches + 1, self.scored + len(asked)
        of = dict(zip(asked, scores, strict=True))
        for solutions, answer in calls:
            if not answer.done():  # its search was given up meanwhile
                answer.set_result([of[_key(solution)] for solution in solutions])


def _key(solution: Solution) -> tuple[str, Steps]:
    return solution.problem.id, solution.steps
