"""Compute advantages over the global batch with pure functions: group baselines, GAE, whitening, clamping.

Shapes: P prompt, K sample of its group, N = P·K sample of the batch, T token. Each row is a group, padded to the
largest group size; `kept_PK` is False on padding and on dropped samples, whose reward is never read and whose advantage
is 0. Rows cover the global batch, not one rank's share. Each response token receives its sequence's advantage. Token
rewards (KL, process reward) are added to it, then `clamp` and `whiten` are applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmprm.config import Config

EPSILON = 1e-6
"""Constant added to every standard deviation before dividing by it."""


class AdvantageConfig(Config):
    """Configures the advantage estimator."""

    estimator: Literal[
        "rloo",
        "grpo",
        "grpo_batch_std",
        "dr_grpo",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "gae",
        "cpgd",
        "cpgd_inverse_std",
        "cpgd_clip_filter",
    ] = "rloo"
    """Advantage estimator. gae needs a critic; all others except reinforce_pp need at least two responses with a known
    reward per group."""
    clamp: float | None = Field(None, gt=0)
    """Maximum absolute advantage, applied before whitening. MM-Eureka uses 10."""
    whiten: bool | None = None
    """Whiten advantages over the tokens of the global batch. By default, this is true only for gae and the two
    REINFORCE++ estimators, which are defined with whitening. MM-Eureka uses true for all estimators except grpo."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount factor for token rewards. gae and reinforce_pp assign the sequence reward to the last token and discount
    it too."""
    lam: float = Field(1.0, ge=0, le=1)
    """λ of generalized advantage estimation (GAE), with estimator=gae or credit.mode=value."""

    @property
    def whitens(self) -> bool:
        """Return whether to whiten advantages, which depends on the estimator unless `whiten` is set."""
        return ESTIMATORS[self.estimator].whitens if self.whiten is None else self.whiten

    @model_validator(mode="after")
    def _whitening_is_the_baseline(self) -> AdvantageConfig:
        if self.whiten is False and self.estimator.startswith("reinforce_pp"):
            raise ValueError(
                f"whiten=false with estimator={self.estimator}: whitening is part of REINFORCE++; leave whiten out, or "
                "use rloo or dr_grpo"
            )
        return self


def tabulate(rewards: Sequence[Sequence[float | None]], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Pad groups of rewards to equal size; return (rewards_PK, known_PK).

    known_PK is False on padding and for unknown rewards (None), where rewards_PK is 0.
    """
    width = max(map(len, rewards), default=0)
    rows = [[*row, *[None] * (width - len(row))] for row in rewards]
    known_PK = torch.tensor([[reward is not None for reward in row] for row in rows], dtype=torch.bool)
    rewards_PK = torch.tensor([[0.0 if reward is None else reward for reward in row] for row in rows], dtype=dtype)
    return rewards_PK, known_PK


def keep(known_PK: Tensor, least: int = 2) -> Tensor:
    """Return kept_PK, which marks the samples with known rewards, except in groups with fewer than `least` of them."""
    return known_PK & (known_PK.sum(dim=1, keepdim=True) >= least)


def rloo(rewards_PK: Tensor, kept_PK: Tensor) -> Tensor:
    """Compute RLOO advantages (Ahmadian et al. 2024).

    A_k = R_k − mean of the others = (K·R_k − ΣR)/(K − 1) over K kept samples.
    """
    count_P1 = kept_PK.sum(dim=1, keepdim=True)
    return dr_grpo(rewards_PK, kept_PK) * count_P1 / (count_P1 - 1).clamp(min=1)


def grpo(rewards_PK: Tensor, kept_PK: Tensor) -> Tensor:
    """Compute GRPO advantages (DeepSeekMath).

    A_k = (R_k − mean)/(std + ε) with unbiased std, or 0 if all rewards are equal.
    """
    centered_PK = dr_grpo(rewards_PK, kept_PK)
    degrees_P1 = (kept_PK.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    scaled_PK = centered_PK / ((centered_PK.square().sum(dim=1, keepdim=True) / degrees_P1).sqrt() + EPSILON)
    return torch.where(differs(rewards_PK, kept_PK), scaled_PK, 0)


def grpo_batch_std(rewards_PK: Tensor, kept_PK: Tensor) -> Tensor:
    """Compute GRPO advantages with the standard deviation of the batch: A_k = (R_k − group mean)/(std + ε).

    std is the unbiased standard deviation of all kept rewards in the batch. A group whose rewards hardly differ is thus
    not scaled up (Liu et al. 2025, "Tricks or Traps"). All advantages are 0 if all rewards of the batch are equal.
    """
    centered_PK = dr_grpo(rewards_PK, kept_PK)
    if not differs(rewards_PK.reshape(1, -1), kept_PK.reshape(1, -1)).any():
        return torch.zeros_like(centered_PK)
    return centered_PK / (rewards_PK[kept_PK].std() + EPSILON)


def dr_grpo(rewards_PK: Tensor, kept_PK: Tensor) -> Tensor:
    """Compute advantages A_k = R_k − mean, without dividing by the standard deviation (Dr. GRPO, Liu et al. 2025).

    With whitening, this is the baseline variant of REINFORCE++; without it, CPGD with ω = 1.
    """
    count_P1 = kept_PK.sum(dim=1, keepdim=True).clamp(min=1)
    mean_P1 = reinforce_pp(rewards_PK, kept_PK).sum(dim=1, keepdim=True) / count_P1
    return torch.where(kept_PK, rewards_PK - mean_P1, 0)


def reinforce_pp(rewards_PK: Tensor, kept_PK: Tensor) -> Tensor:
    """Compute REINFORCE++ advantages A_k = R_k (Hu 2025).

    The reward is assigned to the last token T, so token t receives γ^(T − t)·R_k. Whitening over the tokens of the
    global batch is the only baseline.
    """
    return torch.where(kept_PK, rewards_PK, 0)


def cpgd_clip_filter(rewards_PK: Tensor, kept_PK: Tensor, cap: float = 3.0) -> Tensor:
    """Compute CPGD's clip-filter advantages A_k = ω·(R_k − mean), where ω makes up for groups with equal rewards.

    Groups with equal rewards have no gradient, so the other groups are scaled up to compensate: ω = min(cap, number of
    groups / number of groups with std > 0).
    """
    differing = differs(rewards_PK, kept_PK).sum()
    weight = (kept_PK.any(dim=1).sum() / differing.clamp(min=1)).clamp(max=cap)
    return weight * dr_grpo(rewards_PK, kept_PK)


def differs(rewards_PK: Tensor, kept_PK: Tensor) -> Tensor:
    """Return differs_P1, the mask of groups whose rewards are not all equal (std > 0).

    Compares minimum and maximum, because in float32 the rounding error of a mean exceeds ε.
    """
    highest_P1 = torch.where(kept_PK, rewards_PK, -torch.inf).amax(dim=1, keepdim=True)
    lowest_P1 = torch.where(kept_PK, rewards_PK, torch.inf).amin(dim=1, keepdim=True)
    return highest_P1 > lowest_P1


@dataclass(frozen=True, slots=True)
class Estimator:
    """Describes an advantage estimator: its function, its minimum group size, and how its advantages are used.

    `advantages(rewards_PK, kept_PK)` returns the advantages. A group with fewer than `least` known samples is dropped.
    `whitens`: whitening is part of the definition. `on_last_token`: the sequence reward is assigned to the last token
    and discounted, instead of being assigned to every token. `critic`: rewards are passed through `gae`.
    """

    advantages: Callable[[Tensor, Tensor], Tensor]
    least: int = 2
    whitens: bool = False
    on_last_token: bool = False
    critic: bool = False


ESTIMATORS = {
    "rloo": Estimator(rloo),
    "grpo": Estimator(grpo),
    "grpo_batch_std": Estimator(grpo_batch_std),
    "dr_grpo": Estimator(dr_grpo),
    "reinforce_pp": Estimator(reinforce_pp, least=1, whitens=True, on_last_token=True),
    "reinforce_pp_baseline": Estimator(dr_grpo, whitens=True),
    "gae": Estimator(reinforce_pp, least=1, whitens=True, on_last_token=True, critic=True),
    "cpgd": Estimator(dr_grpo),
    "cpgd_inverse_std": Estimator(grpo),
    "cpgd_clip_filter": Estimator(cpgd_clip_filter),
}


def gae(rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Compute generalized advantage estimation (Schulman et al. 2016); return (advantages_NT, returns_NT).

    δ_t = r_t + γ·V_{t+1} − V_t, A_t = δ_t + γλ·A_{t+1}, return_t = A_t + V_t. V and A are 0 after the last response
    token. Masked tokens are skipped at any position and get 0.
    """
    values_NT = torch.where(mask_NT, values_NT, 0)
    advantages_NT = torch.zeros_like(values_NT)
    next_value_N = next_advantage_N = torch.zeros_like(values_NT[:, 0])
    for t in reversed(range(values_NT.shape[1])):
        advantage_N = rewards_NT[:, t] + gamma * next_value_N - values_NT[:, t] + gamma * lam * next_advantage_N
        # Masked tokens pass the next token's value and advantage on, so that they are skipped.
        next_advantage_N = torch.where(mask_NT[:, t], advantage_N, next_advantage_N)
        next_value_N = torch.where(mask_NT[:, t], values_NT[:, t], next_value_N)
        advantages_NT[:, t] = torch.where(mask_NT[:, t], advantage_N, 0)
    return advantages_NT, advantages_NT + values_NT


def returns_to_go(rewards_NT: Tensor, mask_NT: Tensor, gamma: float) -> Tensor:
    """Compute discounted returns G_t = Σ_{l ≥ t} γ^(l − t)·r_l over response tokens: GAE with λ = 1 and no critic."""
    if not rewards_NT.any():
        return torch.zeros_like(rewards_NT)
    if gamma == 1:  # a cumulative sum replaces GAE's loop over tokens
        sums_NT = torch.where(mask_NT, rewards_NT, 0).double().flip(-1).cumsum(dim=-1).flip(-1)
        return torch.where(mask_NT, sums_NT, 0).to(rewards_NT.dtype)
    return gae(rewards_NT, torch.zeros_like(rewards_NT), mask_NT, gamma, 1.0)[0]


def clamp(advantages: Tensor, limit: float | None) -> Tensor:
    """Clamp advantages to [−limit, limit]. None disables clamping."""
    return advantages if limit is None else advantages.clamp(-limit, limit)


def moments(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Return (count, sum, sum of squares) over the tokens where `mask_NT` is True, in float64.

    Sum the result over ranks before `whiten`.
    """
    # The variance is a small difference of two large sums, for which float32 is not accurate enough.
    values = values_NT[mask_NT].double()
    return torch.stack([mask_NT.sum().double(), values.sum(), values.square().sum()])


def whiten(values_NT: Tensor, mask_NT: Tensor, global_moments: Tensor) -> Tensor:
    """Whiten values: A becomes (A − mean)/√max(var, 1e-8). Mean and biased variance come from `global_moments`.

    Masked values become 0.
    """
    count, total, squares = global_moments
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=1e-8)
    return torch.where(mask_NT, (values_NT - mean) * variance.rsqrt(), 0).to(values_NT.dtype)
