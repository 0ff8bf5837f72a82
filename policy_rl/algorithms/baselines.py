"""Compute baselines for step returns from the group's other samples, and subtract them.

Shapes: P prompt, K sample of its group, S step. Excluded steps are masked, with return 0 and 0 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScoredSteps:
    """Contains the scores and token counts of steps, and the mask of valid steps.

    Each row is filled from the left. A row without steps belongs to a response that could not be split or scored.
    """

    scores_PKS: Tensor
    tokens_PKS: Tensor
    mask_PKS: Tensor


def step_index(returns_PKS: Tensor, steps: ScoredSteps) -> Tensor:
    """Subtract from each step's return the mean return of the same step in the group's other samples.

    The result for step j of sample k is G_j^k minus the mean of G_j^i over the samples i ≠ k that have a step j. It is
    0 if no other sample has a step j. A baseline of step j may depend on the other samples and on what precedes the
    step (its index), but never on what follows it. With this baseline, the results sum to 0 over the samples with a
    step j, regardless of their lengths.
    """
    mask_PKS = steps.mask_PKS
    values_PKS = torch.where(mask_PKS, returns_PKS, 0).double()
    others_PKS = mask_PKS.sum(dim=1, keepdim=True) - 1
    mean_PKS = (values_PKS.sum(dim=1, keepdim=True) - values_PKS) / others_PKS.clamp(min=1)
    return torch.where(others_PKS > 0, values_PKS - mean_PKS, 0).to(returns_PKS.dtype)


def pure_tokens(returns_PKS: Tensor, steps: ScoredSteps) -> Tensor:
    """Subtract PURE's baseline: the other samples' mean return per token, times the number of tokens from this step on.

    The result is G_j − b_k·Σ_{l ≥ j} tokens(l) with b_k = Σ_{i ≠ k} G_1^i / Σ_{i ≠ k} tokens^i over scored samples. The
    baseline is biased: the remaining tokens are the response's own later actions, so it rewards or penalizes length.
    Two responses of 5 and 10 tokens whose steps all have p = 0.9 get +0.4 and −0.8 at their first step; at p = 0.1 the
    signs are reversed. Returns that are not sums (strict_min) are not even centered. Use it only to reproduce results.
    """
    totals_PK, lengths_PK = returns_PKS[..., :1].sum(dim=-1), steps.tokens_PKS.sum(dim=-1)
    others_PK = totals_PK.sum(dim=1, keepdim=True) - totals_PK
    rates_PK = others_PK / (lengths_PK.sum(dim=1, keepdim=True) - lengths_PK).clamp(min=1)
    return returns_PKS - rates_PK[..., None] * to_go(steps.tokens_PKS)


def prime_steps(returns_PKS: Tensor, steps: ScoredSteps) -> Tensor:
    """Subtract PRIME's baseline: the other samples' mean reward per step, times the number of steps from this step on.

    The result is G_j − b_k·Σ_{l ≥ j} 1, where b_k is the mean of G_1^i / S_i over the group's scored samples i ≠ k. The
    baseline is biased like `pure_tokens`, by the number of steps instead of tokens: with all p = 0.9, responses of 1
    and 2 steps get +0.4 and −0.8 at their first step. Use it only to reproduce results.
    """
    steps_PK = steps.mask_PKS.sum(dim=-1)
    means_PK = returns_PKS[..., :1].sum(dim=-1) / steps_PK.clamp(min=1)
    others_P1 = ((steps_PK > 0).sum(dim=1, keepdim=True) - 1).clamp(min=1)
    baselines_PK = (means_PK.sum(dim=1, keepdim=True) - means_PK) / others_P1
    return returns_PKS - baselines_PK[..., None] * to_go(steps.mask_PKS.to(returns_PKS.dtype))


def to_go(values_PKS: Tensor) -> Tensor:
    """Return the sum of values from each step j to the last: Σ_{l ≥ j} v_l."""
    return values_PKS.flip(-1).cumsum(dim=-1).flip(-1)


BASELINES: dict[str, Callable[[Tensor, ScoredSteps], Tensor] | None] = {
    "step_index": step_index,
    "pure_tokens": pure_tokens,
    "prime_steps": prime_steps,
    "none": None,
}
"""Baseline functions keyed by credit.baseline, for the modes that assign returns to steps. The other modes have
baselines of their own: for scalar that of the estimator (with rloo, the mean of the group's other responses), for
step_gae the critic's value, and for value the value of the step before or, at the first step, the mean of the others.
None of them depends on what follows the step."""
