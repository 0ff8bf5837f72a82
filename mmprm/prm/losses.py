"""Compute the training loss of a process reward model.

Shapes: M marker (with or without a label), 2 logits of [Yes, No].
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cross_entropy_sum(logits_M2: Tensor, target_M: Tensor, weight_M: Tensor | None = None) -> Tensor:
    """Sum the weighted binary cross-entropy over all markers with a target, in nats.

    The sum is Σ_m −w [y log p + (1 − y) log(1 − p)] with p = softmax(logits_m)[0] and target y.

    `target_M` holds y in [0, 1], the share of correct rollouts, or NaN for a step without a label. It must be floating
    point: an integer tensor would round 0.94 to 0, and an ignore index such as −100 is not a target. `weight_M` holds
    w, with mean 1 over the training set; the default is 1. The caller divides the sum by the number of labeled steps
    of the whole batch, over all micro-batches and ranks. Computed in float32 for logits of any dtype.
    """
    assert target_M.is_floating_point(), "soft labels are floating point"
    labeled_M = ~target_M.isnan()
    log_p_M2 = torch.log_softmax(logits_M2.float(), dim=1)[labeled_M]
    y_M = target_M[labeled_M].float()
    assert bool(((y_M >= 0) & (y_M <= 1)).all()), "targets must lie in [0, 1], or be NaN without a label"
    loss_M = -(y_M * log_p_M2[:, 0] + (1 - y_M) * log_p_M2[:, 1])
    return loss_M.sum() if weight_M is None else (weight_M[labeled_M].float() * loss_M).sum()
