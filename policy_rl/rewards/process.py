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
from typing import Any, Protocol

import numpy as np
from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.errors import DataError, MmprmError, TrainingError
from mmprm.scoring.aggregate import Aggregator, aggregator, chosen_aggregator
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.http.queue import ScoreResult
from mmprm.scoring.open import scorer_info
from mmprm.steps import StepFormat, StepSplit
from mmprm.types import Problem, Solution
from policy_rl.graded import StepRewards
from policy_rl.rewards.cutter import StepCutter
from policy_rl.rewards.prm_refresh import RefreshConfig
from policy_rl.types import Response


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
    refresh: RefreshConfig | None = None
    """Retrain the PRM on the trees of the run when its scores no longer agree with them. Requires
    rollouts.branching.store. By default, the PRM stays as it is."""

    @model_validator(mode="after")
    def _runs_a_judge_elsewhere(self) -> ProcessConfig:
        if self.scorer.judge is not None and not self.scorer.is_remote:
            raise ValueError(
                "scorer.backend=judge must run on servers, because the run places no engine for it; set "
                "scorer.judge.engine.servers.urls"
            )
        return self

    @model_validator(mode="after")
    def _refreshes_a_local_prm(self) -> ProcessConfig:
        if self.refresh is not None and (self.scorer.is_remote or self.scorer.judge is not None):
            raise ValueError(
                "refresh retrains a PRM that this run loads, but the scorer runs elsewhere; set scorer.prm to a "
                "checkpoint, or leave refresh out"
            )
        return self

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
    """Scores the steps of responses, and maps each sampled token to its step (see StepCutter).

    `unscored` counts the responses without process reward by reason.
    """

    def __init__(self, tokenizer: Any, step_format: StepFormat, prefill: str, prm: Judge) -> None:
        self.unscored: Counter[str] = Counter()
        self._cutter, self._prm = StepCutter(tokenizer, step_format, prefill), prm

    async def score(self, problem: Problem, responses: Sequence[Response]) -> list[StepRewards | None]:
        """Return the step rewards of each response to a problem, or None for a response without process reward.

        Raises TrainingError, naming the problem, if scores are not probabilities or if the PRM fails.
        """
        cuts = [self._cutter.cut(response) for response in responses]
        solutions = [
            Solution(problem, found.steps, response.observations)
            for (found, _), response in zip(cuts, responses, strict=True)
            if found.steps
        ]
        answers = iter(await self._prm.judge(solutions) if solutions else ())
        return [
            self._scored(problem, found, step_of_token, next(answers)) if found.steps else self._none(found.reason)
            for found, step_of_token in cuts
        ]

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
