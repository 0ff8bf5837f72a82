"""Measure pass@1 of the current policy on held-out problems, using the rollout engines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from mmprm.errors import DataError, EngineStoppedError, SamplingError, TrainingError
from mmprm.metrics import Interval, bootstrap_mean
from mmprm.types import Grader, Problem
from policy_rl.collector import all_or_none, grading_of
from policy_rl.metrics import describe_episodes
from policy_rl.rewards.outcome import ACCURACIES
from policy_rl.rollouts.config import rollout_seed
from policy_rl.rollouts.pool import RolloutPool
from policy_rl.types import Group, Response

DRAWS = -1
"""Constant that replaces the policy version when seeds are derived, so that every evaluation uses the same seeds."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Summarizes an evaluation on held-out problems: pass@1 with its interval, and counts.

    `pass_at_1` averages each problem's fraction of correct responses over problems, at the sampling temperature, with a
    95% interval over problems; responses without a known accuracy are left out. `problems` counts the problems in this
    mean, and `failed` those that have no response with a known accuracy. `unknown` counts responses without a known
    accuracy, such as those that an engine aborted. `tokens` is the mean number of tokens per response. With an
    environment, `episodes` holds the metrics of `describe_episodes`.
    """

    pass_at_1: Interval
    problems: int
    failed: int
    unknown: int
    tokens: float
    episodes: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log, keyed by name."""
        return {
            "pass_at_1": self.pass_at_1.value,
            "pass_at_1_low": self.pass_at_1.low,
            "pass_at_1_high": self.pass_at_1.high,
            "problems": float(self.problems),
            "failed": float(self.failed),
            "unknown": float(self.unknown),
            "tokens_per_response": self.tokens,
            **self.episodes,
        }


async def evaluate(
    pool: RolloutPool,
    grader: Grader,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    prefill: str = "",
    accuracy: str = "verdict",
) -> Evaluation:
    """Sample `samples` responses per problem, grade them and return the pass@1 result.

    `accuracy` is rewards.accuracy, and `prefill` is the text that the prompt puts at the start of each response. Raises
    TrainingError if no problem has a response with a known accuracy.
    """

    async def grade(problem: Problem, response: Response) -> float | None:
        if response.finish_reason == "abort":
            return None
        return ACCURACIES[accuracy](problem, await grading_of(grader, problem, response, prefill))

    async def ask(problem: Problem) -> tuple[Group, list[float | None]] | None:
        try:
            group = await pool.sample(problem, samples, rollout_seed(seed, DRAWS, problem.id), pool.version)
        except EngineStoppedError:
            raise
        except (SamplingError, DataError):
            return None
        return group, await asyncio.gather(*(grade(problem, response) for response in group.responses))

    answers = [answer for answer in await all_or_none(map(ask, problems)) if answer is not None]
    known = [[accuracy for accuracy in accuracies if accuracy is not None] for _, accuracies in answers]
    shares = [sum(each) / len(each) for each in known if each]
    if not shares:
        raise TrainingError(
            "evaluation: no held-out problem has a known verdict; check held_out (its answers) and grader"
        )
    responses = [response for group, _ in answers for response in group.responses]
    return Evaluation(
        bootstrap_mean(shares, seed),
        problems=len(shares),
        failed=len(problems) - len(shares),
        unknown=sum(len(accuracies) for _, accuracies in answers) - sum(map(len, known)),
        tokens=fmean(response.token_count for response in responses),
        episodes=describe_episodes([response for response in responses if response.finish_reason != "abort"]),
    )
