"""Compare the trainer's and the engine's token probabilities, and weight or mask tokens where they differ.

Shapes: N sequence of a micro-batch, T token. old are the log-probabilities under the trainer before the update, engine
those with which the engine sampled the tokens, and κ = exp(old − engine). mask is True on response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmprm.config import Config


class ImportanceMask(Config):
    """Configures which tokens are left out of the surrogate because trainer and engine disagree."""

    level: Literal["token", "sequence"] = "token"
    """Ratio of trainer to engine probability to compare with the bounds. token: the ratio of each token; sequence:
    their geometric mean over the response, which keeps or leaves out the whole response."""
    low: float = Field(gt=0, le=1)
    """Minimum ratio. Tokens with a lower ratio are left out. IcePop uses 0.5 with level=token."""
    high: float = Field(ge=1)
    """Maximum ratio. Tokens with a higher ratio are left out. IcePop uses 5 with level=token."""


def log_importance(old_NT: Tensor, engine_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Return the log importance ratios ln κ = old − engine, detached, with 0 on masked tokens."""
    return torch.where(mask_NT, old_NT - engine_NT, 0).detach()


def _mean(log_NT: Tensor, mask_NT: Tensor) -> Tensor:
    mean_N1 = log_NT.sum(dim=1, keepdim=True) / mask_NT.sum(dim=1, keepdim=True).clamp(min=1)
    return mean_N1.expand_as(log_NT)


RATIO_LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"token": lambda log_NT, _: log_NT, "sequence": _mean}
"""Functions that compute the log-ratio to compare with the bounds, keyed by importance_mask.level."""


def inside_range(old_NT: Tensor, engine_NT: Tensor, mask_NT: Tensor, limits: ImportanceMask) -> Tensor:
    """Return the mask of response tokens whose ratio is in [low, high]."""
    log_NT = RATIO_LEVELS[limits.level](log_importance(old_NT, engine_NT, mask_NT), mask_NT)
    return mask_NT & (log_NT >= math.log(limits.low)) & (log_NT <= math.log(limits.high))


def truncated_weights(old_NT: Tensor, engine_NT: Tensor, mask_NT: Tensor, cap: float) -> Tensor:
    """Return the importance ratios κ truncated at `cap`, detached (Yao et al. 2025).

    They correct for an engine whose probabilities differ from the trainer's, or whose weights are older. Masked tokens
    get 0.
    """
    log_NT = log_importance(old_NT, engine_NT, mask_NT)
    return log_NT.clamp(max=math.log(cap)).exp() * mask_NT  # clamped before exp, which could overflow


def importance_weights(
    old_NT: Tensor, engine_NT: Tensor, mask_NT: Tensor, cap: float | None, limits: ImportanceMask | None
) -> Tensor | None:
    """Return the weight of each token in the surrogate, or None if there is neither a cap nor a mask.

    The weight is min(κ, cap), or 1 without a cap, and 0 outside the range of `limits`. With level=token and cap=high,
    it is IcePop's: κ inside of [low, high] and 0 outside.
    """
    weights_NT = None if cap is None else truncated_weights(old_NT, engine_NT, mask_NT, cap)
    if limits is None:
        return weights_NT
    inside_NT = inside_range(old_NT, engine_NT, mask_NT, limits)
    return inside_NT.to(old_NT.dtype) if weights_NT is None else weights_NT * inside_NT


def mismatch(old_NT: Tensor, engine_NT: Tensor, mask_NT: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Measure how much the trainer's and the engine's token log-probabilities differ; return (sums, max |d|).

    d is the trainer's log-probability minus the engine's. `sums` holds Σ|d|, Σd and the number of tokens, which add up
    over micro-batches and ranks.
    """
    difference_NT = log_importance(old_NT, engine_NT, mask_NT)
    sums = {"absolute": difference_NT.abs().sum(), "signed": difference_NT.sum(), "tokens": mask_NT.sum()}
    return sums, difference_NT.abs().max()
