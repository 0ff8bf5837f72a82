"""Compute the credit of the turns of episodes from rewards: returns to go, and GiGPO's groups of equal states.

Shapes: P group, K episode of a group, S turn. Turns after the end of an episode, and those of episodes without a known
reward, are masked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from policy_rl.algorithms.advantages import keep, tabulate


def turn_returns(rewards_PKS: Tensor, mask_PKS: Tensor, gamma: float) -> Tensor:
    """Compute the discounted return from each turn on: G_j = Σ_{l ≥ j} γ^(l − j)·r_l.

    With γ = 1, the return of the first turn is the episode's reward.
    """
    returns_PKS = torch.zeros_like(rewards_PKS)
    next_PK = rewards_PKS.new_zeros(rewards_PKS.shape[:-1])
    for turn in reversed(range(rewards_PKS.shape[-1])):
        next_PK = torch.where(mask_PKS[..., turn], rewards_PKS[..., turn] + gamma * next_PK, 0)
        returns_PKS[..., turn] = next_PK
    return returns_PKS


def gigpo_step_advantages(
    returns_PKS: Tensor,
    states_PKS: Tensor,
    mask_PKS: Tensor,
    advantages: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Compute the step-level advantages of GiGPO (Feng et al. 2025, "Group-in-Group Policy Optimization").

    All turns of a group's episodes that begin in the same state s form an anchor-state group,
    {G_j^k : s_j^k = s}, where G_j is the return of `turn_returns` and includes the outcome at the last turn. A turn's
    step-level advantage is the group-relative advantage of its return in this group, normalized as that of an episode:

        A_S = (G_j − mean)/(std + ε) with grpo, G_j − mean with dr_grpo, G_j − mean of the others with rloo

    and the advantage of its tokens is A = A_E + ω·A_S with the episode's advantage A_E. A state that is visited only
    once gives A_S = 0. If no state is visited twice, GiGPO is therefore the estimator itself.

    `states_PKS` holds integers that identify states within a group. `advantages(rewards_PK, kept_PK)` is an estimator's
    function. An episode that visits a state several times is compared with itself, too, so the baseline is not
    independent of the turn's own future.
    """
    places: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for p, k, s in mask_PKS.nonzero().tolist():
        places[p, int(states_PKS[p, k, s])].append((p, k, s))
    found_PKS = torch.zeros_like(returns_PKS)
    if not places:
        return found_PKS
    groups = list(places.values())
    returns_GM, known_GM = tabulate([[returns_PKS[place].item() for place in group] for group in groups])
    advantages_GM = advantages(returns_GM, keep(known_GM))
    for group, advantages_M in zip(groups, advantages_GM.tolist(), strict=True):
        for place, advantage in zip(group, advantages_M, strict=False):  # the table is padded
            found_PKS[place] = advantage
    return found_PKS
