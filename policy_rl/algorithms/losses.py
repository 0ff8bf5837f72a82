"""Compute policy and critic losses: surrogate, KL to a reference, aggregation over the global batch.

Shapes: N sequence of a micro-batch, T token. The log-probabilities of a token are lp under the trained policy, old
under the trained policy before the update, ref under the reference model, and engine in the engine that sampled it.
mask is True on the response tokens of kept samples; values at other tokens are never read and get no gradient.

Every loss is divided by a denominator that the caller sums over the global batch (`denominator`, summed over
micro-batches and ranks), so that the losses of micro-batches add up to the loss of the batch. If gradients are averaged
over ranks, the caller multiplies by the number of ranks.

Log-ratios and the exponent of k3 are clamped to ±20, and k3 to at most 10, as in verl. A clamped value has gradient 0,
so this term then does not change the token's probability. Clamped tokens are counted (`LossMetrics.sums`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmprm.config import Config
from policy_rl.algorithms.importance import ImportanceMask
from policy_rl.algorithms.surrogates import MAX_LOG_RATIO, SURROGATES, clamped, cpgd_drift, surrogate_of

MAX_K3 = 10.0
"""Maximum value to which k3 is clamped."""


def k1(lp: Tensor, ref: Tensor) -> Tensor:
    """Return the k1 estimate of KL(π‖ref) per token: Δ = lp − ref, the difference of the log-probabilities."""
    return lp - ref


def k2(lp: Tensor, ref: Tensor) -> Tensor:
    """Return the k2 estimate of the KL divergence: Δ²/2 with Δ = lp − ref.

    It is not clamped, because its gradient Δ grows only linearly.
    """
    return (lp - ref).square() / 2


def k3(lp: Tensor, ref: Tensor) -> Tensor:
    """Return the k3 estimate of the KL divergence: min(e^(−Δ) − 1 + Δ, 10), with Δ = lp − ref clamped to ±20.

    The gradient is 0 if Δ < −2.61 or Δ > 11.
    """
    exponent = clamped(ref - lp)
    return (exponent.exp() - 1 - exponent).clamp(max=MAX_K3)


KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Functions that estimate KL(π‖ref) per token from the log-probabilities lp and ref (Schulman 2020), keyed by name."""

KL_ESTIMATORS: dict[str, tuple[str, ...]] = {"loss": ("k3", "k2"), "reward": ("k1",)}
"""Valid KL estimators for each value of kl.apply_to, starting with the default. In the loss, on policy, k2 has the
gradient of KL(π‖ref), k3 that of KL(ref‖π), and k1 none. In the reward, k1 has the gradient of KL(π‖ref), k2 and k3
neither."""


class KlConfig(Config):
    """Configures the KL penalty against the reference model."""

    coefficient: float = Field(0.0, ge=0)
    """Coefficient of the KL penalty. If it is 0, no reference model is loaded."""
    apply_to: Literal["loss", "reward"] = "loss"
    """Where to apply the KL penalty. loss: as a loss term; reward: as −coefficient·k1 in the reward of each token."""
    estimator: Literal["k1", "k2", "k3"] | None = None
    """Estimator of the KL divergence: k3 (the default) or k2 in the loss, k1 in the reward."""

    @model_validator(mode="after")
    def _estimator_fits_apply_to(self) -> KlConfig:
        allowed = KL_ESTIMATORS[self.apply_to]
        if self.estimator not in (None, *allowed):
            raise ValueError(
                f"estimator={self.estimator!r} with apply_to={self.apply_to} does not have the gradient of a KL "
                f"divergence; use {' or '.join(allowed)}, or change apply_to"
            )
        return self

    @property
    def function(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that estimates the KL divergence."""
        return KL[self.estimator or KL_ESTIMATORS[self.apply_to][0]]


class LossConfig(Config):
    """Configures the policy loss."""

    surrogate: str = "ppo_clip"
    """Policy objective. ppo_clip: clipped probability ratio; cpgd: clipped log-ratio plus a drift term; cispo: policy
    gradient weighted by the truncated ratio; gspo: clipped ratio of the whole response; or package.module:function, a
    function with the signature in policy_rl/algorithms/surrogates.py."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip range: the ratio is clipped to [1 − clip_low, 1 + clip_high]. Has no effect with cispo."""
    clip_high: float = Field(0.2, gt=0)
    """Upper clip range: the ratio is clipped to [1 − clip_low, 1 + clip_high]."""
    dual_clip: float | None = Field(None, gt=1)
    """Dual clip: the ratio above which a token with negative advantage has no gradient. MM-Eureka uses 3."""
    drift: float | None = Field(None, ge=0)
    """Coefficient α of the drift term. By default 0.01 for cpgd and 0 for the other surrogates."""
    drift_cap: float = Field(2.0, gt=0)
    """Upper bound of the factor e^ρ − 1 in the drift term, where e^ρ is the probability ratio of new to old policy."""
    aggregation: Literal["token_mean", "sequence_mean", "prompt_mean", "fixed"] = "token_mean"
    """Averaging of token losses over the global batch. token_mean: average over all tokens; sequence_mean: average each
    response's per-token loss, then average over responses; prompt_mean: average over the tokens of all responses to a
    prompt, then average over prompts (CPGD's paper); fixed: sum over tokens, divided by responses × divisor."""
    divisor: int | None = Field(None, gt=0)
    """Number of tokens per response by which aggregation=fixed divides, such as the generation limit (Dr. GRPO)."""
    importance_cap: float | None = Field(None, gt=0)
    """Upper bound of a token's importance weight, the ratio of its probability in the trainer to that in the engine;
    typically 2. By default, tokens are not weighted."""
    importance_mask: ImportanceMask | None = None
    """Allowed range of the ratio of trainer to engine probability; tokens outside it are left out of the surrogate. By
    default, no token is left out."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Coefficient of the entropy bonus, which raises the entropy of the policy's next-token distributions."""
    kl: KlConfig = KlConfig()
    """KL penalty against the reference model."""

    @model_validator(mode="after")
    def _fixed_has_a_divisor(self) -> LossConfig:
        if self.aggregation == "fixed" and self.divisor is None:
            raise ValueError("aggregation=fixed needs a divisor; set it to the generation limit, such as divisor=4096")
        return self

    @model_validator(mode="after")
    def _surrogate_exists(self) -> LossConfig:
        if self.surrogate not in SURROGATES and ":" not in self.surrogate:
            raise ValueError(
                f"surrogate={self.surrogate!r} must be one of {', '.join(SURROGATES)}, or the import path of a "
                "function, such as my_package.my_losses:my_surrogate"
            )
        return self

    @model_validator(mode="after")
    def _clip_fits_the_surrogate(self) -> LossConfig:
        for key in ("clip_low", "dual_clip"):
            if self.surrogate == "cispo" and getattr(self, key) != LossConfig.model_fields[key].default:
                raise ValueError(
                    f"{key}={getattr(self, key)} has no effect with surrogate=cispo, which only truncates ratios above "
                    "1 + clip_high; leave it out"
                )
        if self.surrogate == "gspo" and not {"clip_low", "clip_high"} <= self.model_fields_set:
            raise ValueError(
                "surrogate=gspo clips the mean ratio of a whole response, which varies much less than the ratio of a "
                "token; set clip_low and clip_high, such as clip_low=0.0003 and clip_high=0.0004 (GSPO's paper)"
            )
        return self

    @property
    def drift_coefficient(self) -> float:
        """Return the coefficient of the drift term: `drift` if it is set, otherwise the surrogate's default."""
        default = SURROGATES[self.surrogate].drift if self.surrogate in SURROGATES else 0.0
        return default if self.drift is None else self.drift


@dataclass(frozen=True, slots=True)
class Aggregation:
    """Defines how token losses are aggregated.

    `weights(mask_NT, group_tokens_N)` returns the token weights in the numerator, and
    `size(mask_NT, group_tokens_N, divisor)` this micro-batch's share of the denominator.
    """

    weights: Callable[[Tensor, Tensor | None], Tensor]
    size: Callable[[Tensor, Tensor | None, int | None], Tensor]


def _by_sequence(mask_NT: Tensor) -> Tensor:
    return mask_NT / mask_NT.sum(dim=1, keepdim=True).clamp(min=1)


def _by_prompt(mask_NT: Tensor, group_tokens_N: Tensor | None) -> Tensor:
    return _by_sequence(mask_NT) if group_tokens_N is None else mask_NT / group_tokens_N[:, None].clamp(min=1)


AGGREGATIONS = {
    "token_mean": Aggregation(lambda mask, _: mask, lambda mask, *_: mask.sum()),
    "sequence_mean": Aggregation(lambda mask, _: _by_sequence(mask), lambda mask, *_: mask.any(dim=1).sum()),
    # A response counts as its share of its prompt's tokens; the shares add up to the number of prompts.
    "prompt_mean": Aggregation(_by_prompt, lambda mask, tokens, _: _by_prompt(mask, tokens).sum()),
    "fixed": Aggregation(lambda mask, _: mask, lambda mask, _, divisor: mask.any(dim=1).sum() * divisor),
}


def denominator(mask_NT: Tensor, config: LossConfig, group_tokens_N: Tensor | None = None) -> Tensor:
    """Return this micro-batch's share of the loss denominator; sum it over micro-batches and ranks.

    token_mean counts response tokens; sequence_mean counts sequences with a response token; prompt_mean counts prompts
    with a response token; fixed counts sequences with a response token, times `divisor`.

    `group_tokens_N` is used by prompt_mean. It is the total number of tokens in the update's responses to the
    sequence's prompt, over all micro-batches and ranks. None means that each prompt has one response.
    """
    return AGGREGATIONS[config.aggregation].size(mask_NT, group_tokens_N, config.divisor)


def aggregate(
    loss_NT: Tensor, mask_NT: Tensor, denominator: Tensor, aggregation: str, group_tokens_N: Tensor | None = None
) -> Tensor:
    """Return the weighted sum of token losses, divided by the denominator: Σ w·loss / denominator.

    For mask m, the weight w is m with token_mean and fixed, m / Σ_t m with sequence_mean, and m / Σ m over all
    responses to the sequence's prompt with prompt_mean.
    """
    weights_NT = AGGREGATIONS[aggregation].weights(mask_NT, group_tokens_N)
    return (weights_NT * torch.where(mask_NT, loss_NT, 0)).sum() / denominator


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """Contains the detached loss metrics of a micro-batch.

    `terms` (surrogate, drift and kl before their coefficients) add up over micro-batches and ranks. So do the token
    sums in `sums`, to be divided by the number of tokens: clipped (a token with advantage 0 does not count as clipped),
    kl_old and kl_ref (both k3), ratio_clamped (|ρ| > 20), kl_clamped (k3 of the reference is at a limit), and, with an
    importance mask, importance_masked (tokens that it leaves out).
    `log_ratio_min` and `log_ratio_max` are the extremes of ρ before the clamp.
    """

    terms: dict[str, Tensor]
    sums: dict[str, Tensor]
    log_ratio_min: Tensor
    log_ratio_max: Tensor


def policy_loss(
    lp: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: Tensor,
    config: LossConfig,
    ref: Tensor | None = None,
    weights: Tensor | None = None,
    group_tokens: Tensor | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, LossMetrics]:
    """Compute the policy loss from its surrogate, drift, KL and entropy terms; return (loss, metrics).

    The loss is Σ w·(weights·surrogate + α·drift + β·KL − γ·H) / denominator, with the w of `aggregate`. α is the
    coefficient of the drift term; β is kl.coefficient, or 0 if apply_to=reward; γ is entropy_coefficient, and H the
    entropy of the distribution from which a token is sampled.

    All tensors are _NT except group_tokens_N. ρ = lp − old is clamped to ±20; beyond that, ppo_clip and cpgd have no
    gradient, and CPGD's drift keeps its capped gradient. `denominator` is that of the global batch. `ref` is needed if
    kl.coefficient > 0, and `entropy`, with its gradient, if entropy_coefficient > 0. `weights` (from
    `importance_weights`) scale only the surrogate. `group_tokens` is used by aggregation=prompt_mean.
    """
    assert denominator > 0, "no response token in the global batch: skip the update"
    # Mask before any arithmetic: a NaN in the padding would survive a later multiplication by 0.
    lp_NT, old_NT, advantages_NT = (torch.where(mask, tensor, 0) for tensor in (lp, old, advantages))
    ref_NT = lp_NT.detach() if ref is None else torch.where(mask, ref, 0)
    surrogate_NT, clipped_NT = surrogate_of(config.surrogate).loss(lp_NT, old_NT, advantages_NT, mask, config)
    terms_NT = {
        "surrogate": surrogate_NT if weights is None else surrogate_NT * torch.where(mask, weights, 0),
        "drift": cpgd_drift(lp_NT, old_NT, config.drift_cap),
        "kl": config.kl.function(lp_NT, ref_NT),
    }
    in_loss = config.kl.coefficient if config.kl.apply_to == "loss" else 0.0
    assert ref is not None or in_loss == 0, "kl.coefficient > 0 needs log-probabilities of the reference"
    coefficients = {"surrogate": 1.0, "drift": config.drift_coefficient, "kl": in_loss}
    terms = {
        name: aggregate(term, mask, denominator, config.aggregation, group_tokens) for name, term in terms_NT.items()
    }
    total = sum(coefficients[name] * terms[name] for name in terms if coefficients[name])
    if config.entropy_coefficient > 0:
        assert entropy is not None, "entropy_coefficient > 0 needs entropies"
        bonus = aggregate(entropy, mask, denominator, config.aggregation, group_tokens)
        total = total - config.entropy_coefficient * bonus
    difference_NT, to_ref_NT = (lp_NT - old_NT).detach(), ref_NT - lp_NT.detach()
    loss_metrics = _loss_metrics(terms, difference_NT, clipped_NT & (advantages_NT != 0), to_ref_NT, mask)
    if weights is not None and config.importance_mask is not None:
        loss_metrics.sums["importance_masked"] = (weights[mask] == 0).sum()
    return total, loss_metrics


def _loss_metrics(
    terms: dict[str, Tensor], difference_NT: Tensor, clipped_NT: Tensor, to_ref_NT: Tensor, mask_NT: Tensor
) -> LossMetrics:
    difference, to_ref = difference_NT[mask_NT], to_ref_NT[mask_NT]
    zero = torch.zeros_like(difference)
    to_ref_k3 = k3(zero, to_ref)
    return LossMetrics(
        terms={name: term.detach() for name, term in terms.items()},
        sums={
            "tokens": mask_NT.sum(),
            "clipped": clipped_NT[mask_NT].sum(),
            "ratio_clamped": (difference.abs() > MAX_LOG_RATIO).sum(),
            "kl_clamped": ((to_ref.abs() > MAX_LOG_RATIO) | (to_ref_k3 >= MAX_K3)).sum(),
            "kl_old": k3(zero, difference).sum(),
            "kl_ref": to_ref_k3.sum(),
        },
        log_ratio_min=torch.where(mask_NT, difference_NT, torch.inf).amin(),
        log_ratio_max=torch.where(mask_NT, difference_NT, -torch.inf).amax(),
    )


def value_loss(values_NT: Tensor, old_NT: Tensor, returns_NT: Tensor, clip: float | None) -> Tensor:
    """Return the value loss per token for values V and returns G, with PPO's value clipping.

    It is ½·max((V − G)², (old + clamp(V − old, ±clip) − G)²), where old is the value before the update, or ½·(V − G)²
    if clip is None.
    """
    squares_NT = (values_NT - returns_NT).square()
    if clip is not None:
        near_NT = old_NT + (values_NT - old_NT).clamp(-clip, clip)
        squares_NT = torch.maximum(squares_NT, (near_NT - returns_NT).square())
    return squares_NT / 2
