"""Calibrate step scores, so that they predict the outcomes of the policy's current responses.

Shapes: P prompt, K sample of its group, S step.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_VARIANCE = 1e-6
"""Variance of scores below which they are taken for equal."""


def calibrate(scores_PKS: Tensor, mask_PKS: Tensor, rewards_PK: Tensor, scale: float) -> Tensor:
    """Compute the values a·p + b of steps with score p, by least squares on the outcomes of the other groups.

    For each group, a ≥ 0 and b minimize Σ (R − a·p − b)² over the steps in `mask_PKS` of all other groups, where R is
    the reward of the step's sample, 0 or `scale`. The group itself is left out, because a baseline must not depend on
    what follows the step, and the samples of a group are compared with each other. The values are clamped to the range
    of R. Without steps in other groups, they are scale·p.
    """
    p_PKS, r_PKS = (torch.where(mask_PKS, each, 0).double() for each in (scores_PKS, rewards_PK[..., None]))
    terms_PKS = (mask_PKS.double(), p_PKS, r_PKS, p_PKS * p_PKS, p_PKS * r_PKS)
    sums_P = [each.sum(dim=(1, 2)) for each in terms_PKS]
    count_P, p_P, r_P, pp_P, pr_P = (each.sum() - each for each in sums_P)
    some_P = count_P.clamp(min=1)
    variance_P, covariance_P = pp_P / some_P - (p_P / some_P) ** 2, pr_P / some_P - p_P * r_P / some_P**2
    slope_P = torch.where(variance_P > MIN_VARIANCE, covariance_P / variance_P.clamp(min=MIN_VARIANCE), 0).clamp(min=0)
    offset_P = (r_P - slope_P * p_P) / some_P
    values_PKS = (slope_P[:, None, None] * scores_PKS + offset_P[:, None, None]).clamp(0, scale)
    return torch.where(count_P[:, None, None] > 0, values_PKS, scale * scores_PKS).to(scores_PKS.dtype)
