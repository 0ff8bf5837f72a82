"""Distill a teacher into the policy on the policy's own responses: a reverse KL penalty per token.

Shapes: N sample, T token. old are the log-probabilities of the sampled tokens under the policy before the update, and
teacher those under the teacher. mask is True on response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmprm.config import Config, PathText
from policy_rl.algorithms.advantages import returns_to_go
from policy_rl.algorithms.surrogates import clamped


class DistillationConfig(Config):
    """Configures on-policy distillation from a teacher."""

    teacher: PathText
    """Model folder or Hub ID of the teacher. It must have the policy's architecture and tokenizer, at any size."""
    coefficient: float = Field(1.0, gt=0)
    """Coefficient of the distillation advantage, which is added to the other advantages."""
    discount: float = Field(0.0, ge=0, le=1)
    """Discount factor of later tokens' rewards, which are log-ratios of teacher to policy probability. 0: a token is
    credited only with its own reward; 1: with the sum of the rewards from that token on."""


def distillation_advantages(
    old_NT: Tensor, teacher_NT: Tensor, mask_NT: Tensor, config: DistillationConfig
) -> tuple[Tensor, Tensor]:
    """Return the distillation advantages and an estimate of the reverse KL divergence, both per token.

    The estimate is kl = old − teacher, clamped to ±20, and A_t = −c·Σ_{l ≥ t} γ^(l − t)·kl_l (Agarwal et al. 2024).
    With γ = 0, the expected policy gradient is −c times the gradient of KL(π‖teacher) of each next-token distribution,
    for given prefixes. With γ = 1, it is that of the whole response, with a larger variance.
    """
    kl_NT = torch.where(mask_NT, clamped(old_NT - teacher_NT), 0)
    rewards_NT = -config.coefficient * kl_NT
    if config.discount == 0:
        return rewards_NT, kl_NT
    return returns_to_go(rewards_NT, mask_NT, config.discount), kl_NT
