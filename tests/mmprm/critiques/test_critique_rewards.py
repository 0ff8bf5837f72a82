"""Test the rewards of critiques."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmprm.critiques.rewards import step_agreement, verdict_agreement
from mmprm.errors import TrainingError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.rewards.outcome import OutcomeReward, RewardConfig, UserReward
from policy_rl.types import Response
from tests.mmprm.scoring.scripted_judge import lines

GRADING = Grading(Verdict.UNKNOWN, None, "no answer")


def problem(*labels: bool | None, **more: Any) -> Problem:
    extra = {"step_labels": list(labels), "verdict_format": "plain", "after_error": "incorrect"} | more
    return Problem("p", "question", "none", extra=extra)


@pytest.mark.parametrize(
    ("critique", "exact", "share"),
    [
        (lines(1, 1, 0), 1.0, 1.0),
        (lines(1, 0), 0.0, 2 / 3),
        (lines(1, 1, 1, 1), 0.0, 2 / 3),
        (lines(0), 0.0, 1 / 3),
        (lines(1, 1), 0.0, 0.0),  # lacks a verdict, so nothing is read
        ("", 0.0, 0.0),
    ],
)
def test_reward_of_a_critique(critique: str, exact: float, share: float) -> None:
    asked = problem(True, True, False, None)
    assert verdict_agreement(asked, critique, GRADING) == exact
    assert step_agreement(asked, critique, GRADING) == pytest.approx(share)


def test_truncated_critiques_get_nothing_and_aborted_ones_no_reward() -> None:
    asked, critique = problem(True), lines(1)
    for reward in (verdict_agreement, step_agreement):
        assert reward(asked, critique, GRADING, "stop") == 1.0
        assert reward(asked, critique, GRADING, "length") == 0.0
        assert reward(asked, critique, GRADING, "abort") is None


def test_the_reward_of_a_response_is_the_agreement_alone() -> None:
    path = "mmprm.critiques.rewards:verdict_agreement"
    reward = OutcomeReward(RewardConfig(accuracy_weight=0, functions=(UserReward(path=path),)))

    def total(critique: str) -> float | None:
        return reward(problem(True, False), Response(critique, np.arange(3), np.zeros(3), "stop"), GRADING).total

    assert [total(lines(1, 0)), total(lines(1, 1))] == [1.0, 0.0]


def test_problems_without_labels_are_refused() -> None:
    path = "mmprm.critiques.rewards:verdict_agreement"
    reward = OutcomeReward(RewardConfig(accuracy_weight=0, functions=(UserReward(path=path),)))
    response = Response("x", np.arange(1), np.zeros(1), "stop")
    with pytest.raises(TrainingError, match="has no valid column 'step_labels'"):
        reward(Problem("p", "q", "1"), response, GRADING)
