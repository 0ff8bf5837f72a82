"""Provide responses of a policy, and a process reward model with fixed scores per step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from mmprm.errors import DataError
from mmprm.scoring.http.queue import ScoreQueue
from mmprm.types import Problem, Solution, StepScores
from policy_rl.graded import StepRewards
from policy_rl.rewards.process import ProcessReward
from policy_rl.types import Response


def sampled(tokenizer: PreTrainedTokenizerFast, text: str, end: bool = True) -> Response:
    ids = tokenizer.encode(text, add_special_tokens=False) + ([tokenizer.eos_token_id] if end else [])
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    return Response(text, tuple(ids), (0.0,) * len(ids), "stop")


class Scripted:
    """Scores each step by its text; "?" marks a solution that is rejected."""

    def __init__(self, scores: dict[str, float] | None = None) -> None:
        self.scores, self.seen = scores or {}, list[Solution]()

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        for solution in solutions:
            if any("?" in step for step in solution.steps):
                raise DataError(f"problem {solution.problem.id}: too long")
        self.seen += solutions
        return [StepScores(tuple(self.scores.get(step, 0.5) for step in solution.steps)) for solution in solutions]


PROBLEM = Problem("p1", "how many?", "4")


def scored(
    responses: Sequence[Response], scorer: object, tokenizer: object, step_format: str = "tags"
) -> tuple[list[StepRewards | None], ProcessReward]:
    process: list[ProcessReward] = []

    async def run() -> list[StepRewards | None]:
        queue = ScoreQueue(scorer)
        process.append(ProcessReward(tokenizer, step_format, "", queue))
        try:
            return await process[0].score(PROBLEM, responses)
        finally:
            queue.close()

    return asyncio.run(run()), process[0]
