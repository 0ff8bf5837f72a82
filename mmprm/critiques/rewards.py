"""Reward critiques that agree with labels: reward functions for `mmprm rl` on the problems of `mmprm labels critiques`.

Name one of them in `rewards.functions`, as in `{path: mmprm.critiques.rewards:verdict_agreement}`, and set
`rewards.accuracy_weight=0`, because a critique has no final answer. A critique whose verdicts cannot be read, such as a
truncated one, gets 0. The functions never read the labels of another solution.
"""

from __future__ import annotations

from mmprm.critiques.agreement import agreeing_share, contradiction
from mmprm.errors import DataError
from mmprm.scoring.verdicts import VERDICT_FORMATS, Verdicts, read_verdicts
from mmprm.types import Grading, Problem


def verdict_agreement(problem: Problem, response: str, grading: Grading, finish_reason: str = "stop") -> float | None:
    """Return 1 if the verdicts agree with all labels up to the first incorrect step, otherwise 0.

    An aborted response gets None.
    """
    if finish_reason == "abort":
        return None
    verdicts, labels = _verdicts(problem, response, finish_reason), problem.extra["step_labels"]
    return float(verdicts is not None and contradiction(verdicts, labels) is None)


def step_agreement(problem: Problem, response: str, grading: Grading, finish_reason: str = "stop") -> float | None:
    """Return the share of the labels up to the first incorrect step with which the verdicts agree.

    It is denser than `verdict_agreement`, but most of it can be earned by calling every step correct.
    """
    if finish_reason == "abort":
        return None
    verdicts, labels = _verdicts(problem, response, finish_reason), problem.extra["step_labels"]
    return 0.0 if verdicts is None else agreeing_share(verdicts, labels)


def _verdicts(problem: Problem, response: str, finish_reason: str) -> Verdicts | None:
    """Return the verdicts of a complete response, or None if they cannot be read."""
    try:
        labels, form = problem.extra["step_labels"], VERDICT_FORMATS[problem.extra["verdict_format"]]
        after_error = problem.extra["after_error"]
    except KeyError as error:
        raise DataError(
            f"problem {problem.id}: has no valid column {error}; use problems.jsonl of mmprm labels critiques"
        ) from error
    if finish_reason != "stop":
        return None
    verdicts = read_verdicts(response, len(labels), form, after_error)
    return None if isinstance(verdicts, str) else verdicts
