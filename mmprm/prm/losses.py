"""Loss of a process reward model as a pure function.

Shapes: M marker (labelled or not), 2 the logits of [Yes, No].
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cross_entropy_sum(logits_M2: Tensor, target_M: Tensor, weight_M: Tensor | None = None) -> Tensor:
    """Σ_m −w [y log p + (1 − y) log(1 − p)], p = softmax(logits_m)[0], over the markers whose target y is not NaN.

    `target_M` holds y in [0, 1], the share of right rollouts, as floating point: an integer tensor would have turned
    0.94 into 0, and an ignore index such as −100 is no target. NaN marks a step without label. `weight_M` holds w, of
    mean 1 over the training set; 1 without it. The sum is in nats; the caller divides by the number of labelled steps
    of the whole batch, over all micro-batches and ranks. float32 whatever the logits' type.
    """
    assert target_M.is_floating_point(), "soft labels are floating point"
    labelled_M = ~target_M.isnan()
    log_p_M2 = torch.log_softmax(logits_M2.float(), dim=1)[labelled_M]
    y_M = target_M[labelled_M].float()
    assert bool(((y_M >= 0) & (y_M <= 1)).all()), "targets lie in [0, 1]; NaN marks a step without one"
    loss_M = -(y_M * log_p_M2[:, 0] + (1 - y_M) * log_p_M2[:, 1])
    return loss_M.sum() if weight_M is None else (weight_M[labelled_M].float() * loss_M).sum()
