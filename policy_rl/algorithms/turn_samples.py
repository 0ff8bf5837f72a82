"""Convert the turns of graded episodes to tables, and compute the credit of each turn; see turn_credit.

Shapes: P group, K episode of a group, S turn, N kept episode, T token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmprm.data.images import image_digest
from policy_rl.algorithms.advantages import Estimator
from policy_rl.algorithms.baselines import ScoredSteps, step_index
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.turn_credit import gigpo_step_advantages, turn_returns
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.types import ObservationParts

GIGPO_ESTIMATORS = ("rloo", "grpo", "dr_grpo")
"""Advantage estimators that can be applied to a group of returns, whatever its size."""


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """Configures credit from the rewards of turns. `environment_weight` is rewards.environment_weight."""

    credit: CreditConfig
    environment_weight: float = 0.0

    @property
    def replaces_outcome(self) -> bool:
        """Return whether the outcome is part of the turns' rewards and has no advantage of its own."""
        return self.credit.source == "environment"


def turn_advantages(
    groups: Sequence[GradedGroup], kept_PK: Tensor, settings: TurnSettings, estimator: Estimator
) -> Tensor:
    """Return the advantage of each turn of the kept episodes, as advantages_PKS.

    source=environment: G_j minus the mean return of the same turn in the group's other episodes; source=gigpo: ω·A_S.
    """
    rewards_PKS, states_PKS, mask_PKS = _tables(groups, kept_PK, settings.environment_weight)
    returns_PKS = turn_returns(rewards_PKS, mask_PKS, settings.credit.gamma)
    if settings.credit.source == "gigpo":
        own_PKS = gigpo_step_advantages(returns_PKS, states_PKS, mask_PKS, estimator.advantages)
        return settings.credit.weight * own_PKS
    if settings.credit.baseline == "none":
        return returns_PKS
    return step_index(returns_PKS, ScoredSteps(rewards_PKS, torch.zeros_like(rewards_PKS), mask_PKS))


def turn_of_tokens(groups: Sequence[GradedGroup], kept_PK: Tensor) -> Tensor:
    """Return turn_of_NT, the index of the turn in which each token was generated, or −1."""
    played = [groups[p].responses[k].response.played for p, k in kept_PK.nonzero().tolist()]
    rows = [torch.from_numpy(np.array(each.turn_of_token, dtype=np.int64)) for each in played]
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def turn_rewards(each: GradedResponse, environment_weight: float) -> list[float]:
    """Return the weighted rewards of an episode's turns. The last one also has the rest of the episode's reward.

    Their sum is the episode's reward.
    """
    rewards = [environment_weight * turn.reward for turn in each.response.played.turns]
    rewards[-1] += each.reward.total - sum(rewards)
    return rewards


def _tables(groups: Sequence[GradedGroup], kept_PK: Tensor, environment_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (rewards_PKS, states_PKS, mask_PKS) of the kept episodes. Equal observations are the same state.

    The question before the first observation does not count, so that an episode may return to its first state.
    """
    kept = [(p, k, groups[p].responses[k]) for p, k in kept_PK.nonzero().tolist()]
    most = max((len(each.response.played.turns) for *_, each in kept), default=0)
    rewards_PKS, mask_PKS = torch.zeros(*kept_PK.shape, most), torch.zeros(*kept_PK.shape, most, dtype=torch.bool)
    states_PKS = torch.zeros(*kept_PK.shape, most, dtype=torch.long)
    numbers: dict[tuple[str, ...], int] = {}
    for p, k, each in kept:
        turns = each.response.played.turns
        rewards_PKS[p, k, : len(turns)] = torch.tensor(turn_rewards(each, environment_weight))
        mask_PKS[p, k, : len(turns)] = True
        first = _without_question(turns[0].observation, groups[p].problem.question)
        keys = [_state(seen) for seen in (first, *(turn.observation for turn in turns[1:]))]
        states_PKS[p, k, : len(turns)] = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    return rewards_PKS, states_PKS, mask_PKS


def _without_question(observation: ObservationParts, question: str) -> ObservationParts:
    """Leave out a first part that begins with the question, unless it is the only part."""
    begin, *rest = observation or ("",)
    is_question = isinstance(begin, str) and question and begin.startswith(question)
    return tuple(rest) if rest and is_question else observation


def _state(observation: ObservationParts) -> tuple[str, ...]:
    return tuple(part if isinstance(part, str) else image_digest(part) for part in observation)
