from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from mmprm.scoring.http.queue import ScoreQueue
from mmprm.types import Solution, StepScores
from tests.mmprm.guided_world import PROBLEM, OnesScorer


async def test_requests_that_arrive_during_scoring_are_scored_together() -> None:
    started, busy = threading.Event(), threading.Event()

    class SlowScorer(OnesScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            started.set()
            assert busy.wait(60)
            return super().score(solutions)

    scorer = SlowScorer()
    queue = ScoreQueue(scorer)
    calls = [asyncio.create_task(queue.score([Solution(PROBLEM, ("1",))]))]
    assert await asyncio.to_thread(started.wait, 60)
    calls += [
        asyncio.create_task(queue.score([Solution(PROBLEM, (step,)), Solution(PROBLEM, ("1",))])) for step in "2134"
    ]
    await asyncio.sleep(0.01)
    busy.set()
    results = await asyncio.gather(*calls)
    queue.close()
    assert (queue.batches, queue.scored) == (2, 5)
    assert scorer.asked == [("1",), ("2",), ("1",), ("3",), ("4",)]
    assert [[entry.scores[0] for entry in result] for result in results] == [
        [0.9], [0.1, 0.9], [0.9, 0.9], [0.1, 0.9], [0.1, 0.9]
    ]  # fmt: skip
