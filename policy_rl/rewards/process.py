"""Compute process rewards: split responses into steps, score the steps with a PRM, map the steps to tokens.

    process = ProcessReward(tokenizer, step_format, prefill, prm)
    scored = await process.score(problem, responses)     # one group as soon as it arrives

A response that cannot be split, or that the PRM rejects, has no process reward: its result is None, it is counted by
reason in `process.unscored`, and it keeps its outcome reward. (With mode=scalar and without per_source, the reward is
the sum of both, so a response without process reward is excluded.)

Shapes: T token of a response.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from mmprm.config import Config
from mmprm.errors import DataError, MmprmError, TrainingError
from mmprm.scoring.aggregate import Aggregator, aggregator, chosen_aggregator
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.http.queue import ScoreResult
from mmprm.scoring.open import scorer_info
from mmprm.steps import StepFormat, StepSplit, plain, split
from mmprm.types import Problem, Solution, Steps
from policy_rl.graded import StepRewards
from policy_rl.rewards.token_begins import Pieces, caching, step_of_tokens, token_begins
from policy_rl.types import Response

_NO_TOKENS = np.zeros(0, dtype=np.int32)


class ProcessConfig(Config):
    """Configures the process reward model (PRM) of a run."""

    scorer: ScorerConfig
    """Process reward model: a checkpoint, or a running `mmprm serve`. If scorer.too_long rejects a response, it has no
    process reward; if scorer.too_long truncates one, the unscored steps have none."""
    aggregator: str | None = None
    """Aggregator that reduces step scores to one number with credit.mode=scalar. Defaults to the one in the PRM's
    prm.json."""
    cores: int = Field(1, ge=1)
    """Number of CPU cores that a local PRM uses if there is no GPU. They are not reserved in Ray, because the engines,
    one per core, run at the same time."""
    own_gpu: bool = True
    """Give a local PRM its own GPU. If false, it shares a GPU of the last engine, where engine.gpu_memory_utilization
    must leave enough memory."""
    start_timeout_seconds: float = Field(1800, gt=0)
    """Timeout in seconds for loading the PRM."""
    score_timeout_seconds: float = Field(3600, gt=0)
    """Timeout in seconds for scoring one group."""
    max_restarts: int = Field(3, ge=0)
    """Maximum number of times to restart a dead PRM process before the run fails."""

    def aggregate(self) -> Aggregator:
        """Return the aggregator for credit.mode=scalar.

        Raises ConfigError if neither the configuration nor the PRM names one.
        """
        return aggregator(chosen_aggregator(self.aggregator, scorer_info(self.scorer).aggregator))


class Judge(Protocol):
    """Protocol for scoring solutions."""

    async def judge(self, solutions: Sequence[Solution]) -> list[ScoreResult]:
        """Score solutions; return the step scores of each one, or an exception (DataError if it cannot be scored)."""
        ...


class ProcessReward:
    """Scores the steps of responses, and maps each sampled token to its step.

    `prefill` is the beginning of each response that is part of the prompt; `unscored` counts the responses without
    process reward by reason.

    A token belongs to the step in which it starts: a token that spans the end of a step and the start of the next
    belongs to the first of them, and all bytes of a character belong to the same step. A token without text (special,
    end of turn) belongs to the step at its position or, after the last character, to the last step.
    """

    def __init__(self, tokenizer: Any, step_format: StepFormat, prefill: str, prm: Judge) -> None:
        self.unscored: Counter[str] = Counter()
        self._step_format: StepFormat = step_format
        self._prefill, self._prm = prefill, prm

        def decode(token_ids: Sequence[int]) -> str:
            return tokenizer.decode(list(token_ids), skip_special_tokens=True)

        self._decode = caching(decode)
        self._pieces = Pieces(self._decode)

    async def score(self, problem: Problem, responses: Sequence[Response]) -> list[StepRewards | None]:
        """Return the step rewards of each response to a problem, or None for a response without process reward.

        Raises TrainingError, naming the problem, if scores are not probabilities or if the PRM fails.
        """
        cuts = [self._cut(response) for response in responses]
        solutions = [Solution(problem, found.steps) for found, _ in cuts if found.steps]
        answers = iter(await self._prm.judge(solutions) if solutions else ())
        return [
            self._scored(problem, found, step_of_token, next(answers)) if found.steps else self._none(found.reason)
            for found, step_of_token in cuts
        ]

    def _cut(self, response: Response) -> tuple[StepSplit, np.ndarray]:
        verbatim, found = _both_forms(response.text, self._step_format, self._prefill)
        if not found.steps:
            return found, _NO_TOKENS
        begins_T = token_begins(response.token_ids, response.text, self._decode, self._pieces)
        step_of_token = step_of_tokens(verbatim, begins_T, len(self._prefill))
        # The reward of a step is assigned to its tokens, so each step needs at least one.
        if not np.bincount(step_of_token, minlength=len(verbatim)).all():
            return StepSplit((), "step without a token"), _NO_TOKENS
        return found, step_of_token

    def _scored(
        self, problem: Problem, found: StepSplit, step_of_token: np.ndarray, answer: ScoreResult
    ) -> StepRewards | None:
        if isinstance(answer, DataError):
            if not self.unscored["refused by the PRM"]:
                print(
                    f"no process reward for this and similar responses: {answer}",
                    file=sys.stderr,
                    flush=True,
                )
            return self._none("refused by the PRM")
        if isinstance(answer, MmprmError):
            raise answer
        if isinstance(answer, Exception):
            raise TrainingError(
                f"problem {problem.id}: the PRM failed ({type(answer).__name__}: {answer}); reproduce it with mmprm "
                "score"
            ) from answer
        scores, count = answer.scores, len(found.steps)
        if not 0 < len(scores) <= count or not all(math.isfinite(score) and 0 <= score <= 1 for score in scores):
            raise TrainingError(
                f"problem {problem.id}: the PRM gave {len(scores)} scores for {count} steps, "
                f"{', '.join(f'{score:g}' for score in scores[:8])}; each must be a probability in [0, 1]; check its "
                "weights, or set process.scorer.dtype=float32"
            )
        if len(scores) < count:
            step_of_token = np.where(step_of_token < len(scores), step_of_token, -1)
        return StepRewards(scores, step_of_token)

    def _none(self, reason: str | None) -> None:
        self.unscored[reason or ""] += 1


def plain_steps(text: str, step_format: StepFormat, prefill: str = "") -> StepSplit:
    """Return a response's steps without their markup, as the PRM reads them, or why it could not be split.

    The reason is that of `split`, or "empty step".
    """
    return _both_forms(text, step_format, prefill)[1]


def _both_forms(text: str, step_format: StepFormat, prefill: str) -> tuple[Steps, StepSplit]:
    """Return the verbatim steps of a response, and the result of `plain_steps`."""
    found = split(prefill + text, step_format)
    verbatim = written_steps(found.steps, len(prefill))
    steps = tuple(plain(step, step_format) for step in verbatim)
    return verbatim, StepSplit(steps, found.reason) if all(steps) else StepSplit((), "empty step")


def written_steps(steps: Steps, given: int) -> Steps:
    """Merge steps that end within the prefill, the first `given` characters, into the step after them.

    The prefill is part of the prompt, so such steps have no token to reward.
    """
    count = sum(end <= given for end in accumulate(map(len, steps)))
    return ("".join(steps[: count + 1]), *steps[count + 1 :]) if count < len(steps) else steps
