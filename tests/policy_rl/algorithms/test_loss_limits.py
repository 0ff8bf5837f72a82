"""Test the clamps of log-ratios and k3, as in verl: finite values, no gradient beyond a limit, and clamp counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from policy_rl.algorithms.losses import (
    AGGREGATIONS,
    MAX_K3,
    KlConfig,
    LossConfig,
    aggregate,
    denominator,
    k3,
    policy_loss,
)
from policy_rl.algorithms.surrogates import MAX_LOG_RATIO, SURROGATES, cpgd_drift
from policy_rl.trainer.update_metrics import Tally

FAR = [20.0, 20.1, 90.0, 100.0, 1e4]


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class OneRank:
    def gather(self, own: Any) -> list[Any]:
        return [own]


def gradient_of(lp: Tensor, old: Tensor, advantages: Tensor, config: LossConfig, **more: Tensor):
    """Return (loss, gradient with respect to lp, metrics) of unmasked tokens."""
    lp = lp.clone().requires_grad_()
    mask = torch.ones(lp.shape, dtype=torch.bool)
    loss, loss_metrics = policy_loss(lp, old, advantages, mask, denominator(mask, config), config, **more)
    loss.backward()
    return loss.item(), lp.grad, loss_metrics


def test_k3_within_its_limits_by_hand() -> None:
    lp = torch.zeros(6).double().requires_grad_()
    ref = double([0.5, -1.0, 2.6, 3.0, -12.0, 90.0])
    value = k3(lp, ref)
    value.sum().backward()
    inside = [math.exp(0.5) - 1.5, math.exp(-1.0), math.exp(2.6) - 3.6]
    assert value.tolist() == pytest.approx([*inside, MAX_K3, MAX_K3, MAX_K3])
    assert lp.grad.tolist() == pytest.approx([1 - math.exp(0.5), 1 - math.exp(-1.0), 1 - math.exp(2.6), 0, 0, 0])


@pytest.mark.parametrize("distance", [*FAR, -20.1, -90.0, -1e4])
def test_a_far_reference_neither_pulls_nor_overflows(distance: float) -> None:
    """One of 1,000 tokens is far off: e^20 would give a gradient of −4,852 times the coefficient, and e^90 overflows
    float32.
    """
    old = torch.full((1, 1000), -1.0)
    ref = old.clone()
    ref[0, 7] += distance
    config = LossConfig(kl=KlConfig(coefficient=0.01))
    loss, gradient, loss_metrics = gradient_of(old, old, torch.zeros(1, 1000), config, ref=ref)
    assert loss == pytest.approx(0.01 * MAX_K3 / 1000)
    assert gradient.abs().max() == 0
    assert loss_metrics.sums["kl_clamped"].item() == 1
    assert loss_metrics.sums["kl_ref"].item() == pytest.approx(MAX_K3)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("distance", [*FAR, *(-each for each in FAR)])
def test_an_enormous_ratio_gives_finite_numbers(surrogate: str, advantage: float, distance: float) -> None:
    """The ratio is computed in float32 without a dual clip."""
    old = torch.full((1, 4), -1.0)
    lp = old.clone()
    lp[0, 1] += distance
    clip = {"clip_low": 0.1, "clip_high": 0.1} if surrogate == "gspo" else {}
    config = LossConfig(surrogate=surrogate, drift=0.0, **clip)
    loss, gradient, loss_metrics = gradient_of(lp, old, torch.full((1, 4), advantage), config)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()
    assert loss_metrics.sums["ratio_clamped"].item() == (abs(distance) > MAX_LOG_RATIO)
    assert all(value.isfinite().all() for value in (*loss_metrics.sums.values(), *loss_metrics.terms.values()))
    if surrogate in ("ppo_clip", "cpgd"):  # the others truncate the weight, or affect all tokens of the response
        assert gradient[0, 0] != 0
        assert abs(distance) <= MAX_LOG_RATIO or gradient[0, 1] == 0, "clamped: no gradient"


def test_ppo_at_a_log_ratio_of_100() -> None:
    """If A < 0, the ratio without dual clip is e^20, not e^100; the dual clip bounds it at 3."""
    lp, old, advantages = double([[99.0]]), double([[-1.0]]), double([[-2.0]])
    loss, gradient, _ = gradient_of(lp, old, advantages, LossConfig())
    assert (loss, gradient.item()) == (pytest.approx(2 * math.exp(20)), 0.0)
    loss, gradient, _ = gradient_of(lp, old, advantages, LossConfig(dual_clip=3.0))
    assert (loss, gradient.item()) == (pytest.approx(6.0), 0.0)


def test_the_drift_still_pulls_back_beyond_the_limit() -> None:
    lp, old = double([[49.0]]), double([[-1.0]])
    _, gradient, _ = gradient_of(lp, old, double([[1.0]]), LossConfig(surrogate="cpgd", drift=0.5))
    assert gradient.item() == pytest.approx(0.5 * 2.0)
    assert cpgd_drift(lp, old, cap=2.0).item() == 98.0


def test_cpgd_as_released_and_as_published() -> None:
    """The released code uses lp instead of ρ in the first term, with another value (1.68948) and the same gradients."""
    lp, old, advantages = double([[-0.5, -2.0]]), double([[-2.5, -2.1]]), double([[-1.0, 2.0]])
    config = LossConfig(surrogate="cpgd", clip_low=0.2, clip_high=0.2, drift=0.1, drift_cap=2.0)
    loss, gradient, _ = gradient_of(lp, old, advantages, config)
    assert loss == pytest.approx(0.83948, abs=5e-6)
    assert loss - (advantages * old).mean().item() == pytest.approx(1.68948, abs=5e-6)
    torch.testing.assert_close(gradient, double([[0.6, -0.994741]]), atol=5e-7, rtol=0)


def test_metrics_of_an_update_are_finite_and_count_clamped_tokens() -> None:
    """Four tokens have ρ = 0, 100, −100 and 1; the reference is also far off at the last one."""
    old, rho = torch.zeros(1, 4), torch.tensor([[0.0, 100.0, -100.0, 1.0]])
    ref = old + rho
    ref[0, 3] -= 90.0
    config = LossConfig(kl=KlConfig(coefficient=0.1))
    _, _, loss_metrics = gradient_of(old + rho, old, torch.tensor([[1.0, -1.0, 1.0, 1.0]]), config, ref=ref)
    tally, mask = Tally(), torch.ones(1, 4, dtype=torch.bool)
    tally.add(loss_metrics, torch.zeros(1, 4), mask, old, None, None, has_reference=True)
    metrics = tally.metrics(OneRank())
    assert all(math.isfinite(value) for value in metrics.values())
    assert (metrics["ratio_clamped"], metrics["kl_clamped"]) == (0.5, 0.25)
    assert metrics["kl_old"] == pytest.approx((0 + 10 + 10 + math.e - 2) / 4)
    assert metrics["kl_ref"] == pytest.approx(10 / 4)
    assert (metrics["log_ratio_min"], metrics["log_ratio_max"]) == (-100.0, 100.0), "the unclamped value"


class TestPromptMean:
    """Test the prompt mean of CPGD's paper: Σ loss / Σ tokens over a prompt's responses, averaged over prompts."""

    LOSS = double([[1.0, 2, 3], [10.0, 99, 99], [6.0, 8.0, 99]])
    MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]) > 0
    CONFIG = LossConfig(aggregation="prompt_mean")

    def test_by_hand(self) -> None:
        """One prompt has responses of 3 and 1 tokens with mean 16/4, the other has one of 2 tokens with mean 14/2."""
        tokens = torch.tensor([4, 4, 2])
        size = denominator(self.MASK, self.CONFIG, tokens)
        assert size.item() == pytest.approx(2)
        found = aggregate(self.LOSS, self.MASK, size, "prompt_mean", tokens)
        assert found.item() == pytest.approx((16 / 4 + 14 / 2) / 2)

    def test_a_prompts_responses_may_be_in_several_micro_batches_and_ranks(self) -> None:
        tokens = torch.tensor([4, 4, 2])
        for split in ([1, 2], [2, 1], [1, 1, 1]):
            parts = list(zip(self.LOSS.split(split), self.MASK.split(split), tokens.split(split), strict=True))
            size = sum(denominator(mask, self.CONFIG, part) for _, mask, part in parts)
            found = sum(aggregate(loss, mask, size, "prompt_mean", part) for loss, mask, part in parts)
            assert found.item() == pytest.approx(5.5)

    def test_equal_lengths_make_all_means_one(self) -> None:
        loss, mask = torch.arange(12.0).reshape(4, 3), torch.ones(4, 3, dtype=torch.bool)
        tokens = torch.tensor([6, 6, 6, 6])
        found = []
        for name in AGGREGATIONS:
            config = LossConfig(aggregation=name, divisor=3)
            found.append(aggregate(loss, mask, denominator(mask, config, tokens), name, tokens).item())
        assert found == pytest.approx([5.5] * len(AGGREGATIONS))
