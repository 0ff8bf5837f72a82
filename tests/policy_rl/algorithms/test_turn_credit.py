"""Test the credit of turns from rewards with worked numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from corridor import played_response

from mmprm.types import Problem
from policy_rl.algorithms.advantages import ESTIMATORS, AdvantageConfig
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.algorithms.turn_credit import gigpo_step_advantages, turn_returns
from policy_rl.algorithms.turn_samples import TurnSettings, turn_rewards
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.types import TrainingSample

# Two episodes: a, b, c with rewards 0, 0, 1, and a, b with rewards 0, 0.
REWARDS = torch.tensor([[[0.0, 0, 1], [0, 0, 0]]])
MASK = torch.tensor([[[True, True, True], [True, True, False]]])
STATES = torch.tensor([[[0, 1, 2], [0, 1, 0]]])


def test_returns_are_discounted_per_turn() -> None:
    assert turn_returns(REWARDS, MASK, 0.5).tolist() == [[[0.25, 0.5, 1], [0, 0, 0]]]
    assert turn_returns(REWARDS, MASK, 1.0).tolist() == [[[1, 1, 1], [0, 0, 0]]]


def test_masked_rewards_are_never_read() -> None:
    rewards = torch.where(MASK, REWARDS, torch.nan)
    assert turn_returns(rewards, MASK, 0.5).tolist() == [[[0.25, 0.5, 1], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("dr_grpo", [[[0.125, 0.25, 0], [-0.125, -0.25, 0]]]),  # half the difference of 0.25 and 0, and of 0.5 and 0
        ("rloo", [[[0.25, 0.5, 0], [-0.25, -0.5, 0]]]),  # minus the other return
        ("grpo", [[[2**-0.5, 2**-0.5, 0], [-(2**-0.5), -(2**-0.5), 0]]]),  # divided by the unbiased deviation
    ],
)
def test_turns_in_the_same_state_are_compared(estimator: str, expected: list[Any]) -> None:
    """State 2 was visited once, so its turn has no step-level advantage."""
    returns = turn_returns(REWARDS, MASK, 0.5)
    found = gigpo_step_advantages(returns, STATES, MASK, ESTIMATORS[estimator].advantages)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-4)


def test_states_of_different_groups_are_not_compared() -> None:
    returns = turn_returns(torch.cat([REWARDS, REWARDS + 1]), torch.cat([MASK, MASK]), 1.0)
    found = gigpo_step_advantages(
        returns, torch.cat([STATES] * 2), torch.cat([MASK] * 2), ESTIMATORS["rloo"].advantages
    )
    assert found[0].tolist() == [[1, 1, 0], [-1, -1, 0]]


def test_an_episode_that_returns_to_a_state_is_compared_with_itself() -> None:
    """A wasted pair of moves costs 0.2: from state 0, the returns are 0.8 and then 1."""
    rewards, mask = torch.tensor([[[-0.1, -0.1, 1.0]]]), torch.ones(1, 1, 3, dtype=torch.bool)
    returns = turn_returns(rewards, mask, 1.0)
    found = gigpo_step_advantages(returns, torch.tensor([[[0, 1, 0]]]), mask, ESTIMATORS["dr_grpo"].advantages)
    torch.testing.assert_close(found, torch.tensor([[[-0.1, 0, 0.1]]]))


def advantages(
    responses: list[GradedResponse], source: str, environment_weight: float = 0.0, **credit: Any
) -> list[TrainingSample]:
    groups = [GradedGroup(Problem("p", "?", ""), 1, 0, tuple(responses))]
    kept_PK = kept_mask(groups, 2)
    turns = TurnSettings(CreditConfig(source=source, **credit), environment_weight)
    settings = AdvantageSettings(AdvantageConfig(), turns=turns)
    return add_advantages(groups, kept_PK, draft(groups, kept_PK), settings)[0]


SOLVED = played_response(("a", "b", "c"), (-0.1, -0.1, 0.9), 1.7)  # 1 for success, and the rewards
FAILED = played_response(("a", "b"), (-0.1, -0.1), -0.2)


def test_the_turns_of_an_episode_sum_to_its_reward() -> None:
    assert turn_rewards(SOLVED, 1.0) == pytest.approx([-0.1, -0.1, 1.9])
    assert turn_rewards(SOLVED, 0.0) == pytest.approx([0, 0, 1.7])
    assert turn_rewards(FAILED, 1.0) == pytest.approx([-0.1, -0.1])


def test_environment_credit_replaces_the_outcome() -> None:
    """The returns are 1.7, 1.8, 1.9 and −0.2, −0.1. No other episode has a third turn. Observations have no credit."""
    solved, failed = advantages([SOLVED, FAILED], "environment", environment_weight=1.0)
    np.testing.assert_allclose(solved.advantages, [1.9, 1.9, 0, 1.9, 1.9, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(failed.advantages, [-1.9, -1.9, 0, -1.9, -1.9], atol=1e-6)
    (solved, _) = advantages([SOLVED, FAILED], "environment", environment_weight=1.0, baseline="none", gamma=0.5)
    np.testing.assert_allclose(solved.advantages, [0.325, 0.325, 0, 0.85, 0.85, 0, 1.9, 1.9], atol=1e-6)


def test_gigpo_adds_to_the_outcome() -> None:
    """A_E = ±1.9. The returns in a are 0.425 and −0.1, and in b 0.85 and −0.2."""
    found = gigpo_of(0.5, 1.0)
    np.testing.assert_allclose(found[0], [2.425, 2.425, 0, 2.95, 2.95, 0, 1.9, 1.9], atol=1e-6)
    np.testing.assert_allclose(found[1], [-2.425, -2.425, 0, -2.95, -2.95], atol=1e-6)
    np.testing.assert_allclose(gigpo_of(0.5, 2.0)[0], [2.95, 2.95, 0, 4.0, 4.0, 0, 1.9, 1.9], atol=1e-6)


def gigpo_of(gamma: float, omega: float) -> list[np.ndarray]:
    return [each.advantages for each in advantages([SOLVED, FAILED], "gigpo", gamma=gamma, weight=omega)]


def test_episodes_of_unknown_outcome_take_no_part() -> None:
    unknown = played_response(("a", "b"), (0.0, 0.0), None)
    found = advantages([SOLVED, unknown, FAILED], "gigpo")
    assert [each.advantages[0] for each in found] == [
        each.advantages[0] for each in advantages([SOLVED, FAILED], "gigpo")
    ]


def test_the_question_does_not_distinguish_the_first_state() -> None:
    """The first episode hits a wall, so it acts in a twice, with the returns 0 and 0; the other acts in a and b, with 1
    and 1."""
    failed, solved = played_response(("a", "a"), (0.0, 0.0), 0.0), played_response(("a", "b"), (0.0, 0.0), 1.0)
    for question in ((), ("?",), ("? Answer briefly.",)):
        responses = [_asked(failed, question), _asked(solved, question)]
        lost, won = advantages(responses, "gigpo")
        np.testing.assert_allclose(lost.advantages[[0, 3]], [-1 - 0.5, -1 - 0.5], atol=1e-6)
        np.testing.assert_allclose(won.advantages[[0, 3]], [1 + 1, 1], atol=1e-6)


def _asked(each: GradedResponse, question: tuple[str, ...]) -> GradedResponse:
    """Put parts before the first observation of an episode."""
    played = each.response.played
    first = replace(played.turns[0], observation=(*question, *played.turns[0].observation))
    played = replace(played, turns=(first, *played.turns[1:]))
    return replace(each, response=replace(each.response, played=played))
