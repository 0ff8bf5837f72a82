"""Compute surrogate losses per token: PPO clip, CPGD, CISPO, GSPO, and functions of the user.

Every surrogate has the same signature, and so has a user's function (trainer.loss.surrogate=module:function):

    loss_NT, clipped_NT = surrogate(lp_NT, old_NT, advantages_NT, mask_NT, config)

lp are the log-probabilities under the trained policy, which carry the gradient; old are those before the update.
`mask` is True on response tokens; the other three are 0 elsewhere, and the results are ignored there. `config` is the
LossConfig. A smaller loss is better: an unclipped token's gradient with respect to lp is −A on policy. `clipped` is a
boolean mask of the tokens that the clip affected; it is only counted.

Shapes: N sequence of a micro-batch, T token. A row holds a whole response. Formulas use ρ = lp − old, clamped to ±20,
the probability ratio r = e^ρ, and sg, which stops the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmprm.errors import TrainingError
from mmprm.user_function import load_function

if TYPE_CHECKING:
    from policy_rl.algorithms.losses import LossConfig

MAX_LOG_RATIO = 20.0
"""Maximum absolute value to which log-ratios and the exponent of k3 are clamped."""

TokenLoss = tuple[Tensor, Tensor]
"""Loss per token, and the mask of clipped tokens."""
SurrogateFunction = Callable[[Tensor, Tensor, Tensor, Tensor, "LossConfig"], TokenLoss]


def clamped(log_ratio: Tensor) -> Tensor:
    """Clamp a log-ratio to ±20. Outside this range, its gradient is 0."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def bounded(rho_NT: Tensor, advantages_NT: Tensor, low: float, high: float, dual: float | None) -> Tensor:
    """Apply PPO's pessimistic clip to the log-ratio ρ: min(ρ, ln(1 + high)) if A ≥ 0, otherwise max(ρ, ln(1 − low)).

    With dual clip, the latter is at most ln(dual). For any increasing f, f(ρ)·A at the returned ρ equals
    min(f(ρ)·A, f(clip(ρ))·A) and, with dual clip and A < 0, the maximum of that and f(ln dual)·A. Bounding before exp
    prevents ∞·0 for a very large ratio.
    """
    above = rho_NT.clamp(max=math.log(1 + high))
    below = rho_NT.clamp(min=math.log(1 - low), max=None if dual is None else math.log(dual))
    return torch.where(advantages_NT >= 0, above, below)


def _clip(rho_NT: Tensor, advantages_NT: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    bounded_NT = bounded(rho_NT, advantages_NT, config.clip_low, config.clip_high, config.dual_clip)
    return bounded_NT, bounded_NT != rho_NT


def ppo_clip(lp_NT: Tensor, old_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor, config: LossConfig) -> TokenLoss:
    """Return the PPO loss −min(r·A, clip(r, 1−ε_lo, 1+ε_hi)·A) (Schulman et al. 2017).

    With dual clip and A < 0, it is −max(that min, dual·A) (Ye et al. 2020). Without dual clip, only the clamp of
    log-ratios bounds r for A < 0.
    """
    bounded_NT, clipped_NT = _clip(clamped(lp_NT - old_NT), advantages_NT, config)
    return -bounded_NT.exp() * advantages_NT, clipped_NT


def cpgd(lp_NT: Tensor, old_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor, config: LossConfig) -> TokenLoss:
    """Return the CPGD loss −min(ρ·A, clip(ρ, ln(1−ε_lo), ln(1+ε_hi))·A). The drift term is added separately."""
    bounded_NT, clipped_NT = _clip(clamped(lp_NT - old_NT), advantages_NT, config)
    return -bounded_NT * advantages_NT, clipped_NT


def cispo(lp_NT: Tensor, old_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor, config: LossConfig) -> TokenLoss:
    """Return the CISPO loss −sg(min(r, 1+ε_hi))·A·lp (MiniMax-M1 2025).

    The ratio is only a weight: a token whose ratio is clipped keeps a gradient, −(1+ε_hi)·A, with either sign of A. The
    value of the loss has no meaning.
    """
    rho_NT = clamped(lp_NT - old_NT).detach()
    weights_NT = rho_NT.clamp(max=math.log(1 + config.clip_high)).exp()
    return -weights_NT * advantages_NT * lp_NT, rho_NT > math.log(1 + config.clip_high)


def gspo(lp_NT: Tensor, old_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor, config: LossConfig) -> TokenLoss:
    """Return the GSPO loss −min(s·A, clip(s, 1−ε_lo, 1+ε_hi)·A) (Zheng et al. 2025).

    s = exp(mean log-ratio ρ of the response's tokens) is the geometric mean of their ratios r. It is written as
    sg(s)·exp(lp − sg(lp)) (GSPO-token), so that a token's gradient is −s·A of its own advantage. If all tokens of a
    response have the same advantage, this is GSPO's gradient with aggregation=sequence_mean.
    """
    rho_NT = torch.where(mask_NT, clamped(lp_NT - old_NT), 0).detach()
    mean_N1 = rho_NT.sum(dim=1, keepdim=True) / mask_NT.sum(dim=1, keepdim=True).clamp(min=1)
    bounded_NT, clipped_NT = _clip(mean_N1 + (lp_NT - lp_NT.detach()), advantages_NT, config)
    return -bounded_NT.exp() * advantages_NT, clipped_NT


def cpgd_drift(lp_NT: Tensor, old_NT: Tensor, cap: float) -> Tensor:
    """Return CPGD's drift term min(sg(r) − 1, cap)·lp.

    Its gradient is that of the k3 estimate of KL(old‖new) with a capped coefficient, so a ratio above cap + 1 is still
    pulled back, even if ρ is clamped. The value itself has no meaning.
    """
    return (clamped(lp_NT - old_NT).detach().exp() - 1).clamp(max=cap) * lp_NT


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Combines a surrogate loss with the default coefficient of the drift term."""

    loss: SurrogateFunction
    drift: float = 0.0


SURROGATES = {
    "ppo_clip": Surrogate(ppo_clip),
    "cpgd": Surrogate(cpgd, drift=0.01),
    "cispo": Surrogate(cispo),
    "gspo": Surrogate(gspo),
}
"""Built-in surrogates, keyed by trainer.loss.surrogate."""


@cache
def surrogate_of(name: str) -> Surrogate:
    """Return a built-in surrogate by name, or import a user's function by its path, module:function."""
    return SURROGATES[name] if name in SURROGATES else Surrogate(_user_surrogate(name))


def _user_surrogate(path: str) -> SurrogateFunction:
    function = load_function(path, "trainer.loss.surrogate")

    def checked(lp_NT: Tensor, old_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor, config: LossConfig) -> TokenLoss:
        found = function(lp_NT, old_NT, advantages_NT, mask_NT, config)
        shapes = [getattr(each, "shape", None) for each in found] if isinstance(found, tuple) else [None]
        if shapes != [lp_NT.shape, lp_NT.shape] or found[1].dtype != torch.bool:
            raise TrainingError(
                f"trainer.loss.surrogate={path!r} must return a tuple (loss, clipped) of two tensors with one value "
                f"per token, of shape {tuple(lp_NT.shape)}, the second of dtype bool; without a clip, return "
                "torch.zeros_like(mask) as clipped"
            )
        return found

    return checked
