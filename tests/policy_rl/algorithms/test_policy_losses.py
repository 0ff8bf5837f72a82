"""Test policy losses: worked numbers, gradients by finite differences, then invariances."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from mmprm.config import build
from mmprm.errors import ConfigError
from policy_rl.algorithms.losses import (
    AGGREGATIONS,
    KL,
    KlConfig,
    LossConfig,
    aggregate,
    denominator,
    policy_loss,
    value_loss,
)
from policy_rl.algorithms.surrogates import SURROGATES, bounded, cpgd, cpgd_drift, ppo_clip

CLIPS = {"gspo": {"clip_low": 0.1, "clip_high": 0.1}}
"""Options that a surrogate requires."""
CPGD = LossConfig(surrogate="cpgd", clip_low=0.2, clip_high=0.2, drift=0.01, drift_cap=2.0)


def double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def run(lp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, config: LossConfig, **more: Tensor):
    return policy_loss(lp, old, advantages, mask, denominator(mask, config), config, **more)


def alone(rho: Tensor, advantages: Tensor) -> tuple[Tensor, ...]:
    """Return the arguments (lp, old, advantages, mask) of a surrogate for unmasked tokens with log-ratios ρ."""
    return rho, torch.zeros_like(rho), advantages, torch.ones(rho.shape, dtype=torch.bool)


def random_batch(seed: int = 0, shape: tuple[int, int] = (6, 7)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
    return {
        "lp": old + torch.randn(shape, generator=generator, dtype=torch.float64) * 0.4,
        "old": old,
        "ref": old + torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3,
        "advantages": torch.randn(shape, generator=generator, dtype=torch.float64),
        "mask": torch.arange(shape[1]) < lengths,
    }


FULL = LossConfig(
    surrogate="ppo_clip", clip_high=0.28, dual_clip=3.0, drift=0.1, kl=KlConfig(coefficient=0.5, estimator="k3")
)


class TestCpgd:
    def test_on_policy(self) -> None:
        lp = double([[-0.5, -1, -2], [-0.7, -0.3, -9.9]]).requires_grad_()
        advantages = double([[1.0] * 3, [-1.0] * 3])
        mask = double([[1, 1, 1], [1, 1, 0]]) > 0
        total, loss_metrics = run(lp, lp.detach(), advantages, mask, CPGD)
        total.backward()
        assert total.item() == pytest.approx(0.0, abs=1e-12)
        assert loss_metrics.terms["surrogate"].item() == pytest.approx(0.0, abs=1e-12)
        assert loss_metrics.terms["drift"].item() == pytest.approx(0.0, abs=1e-12)
        torch.testing.assert_close(lp.grad, double([[-0.2] * 3, [0.2, 0.2, 0]]))
        # The published variant uses lp instead of ρ, which adds the constant −Σ m·A·old/Σm.
        assert total.item() - (advantages * lp.detach())[mask].sum().item() / 5 == pytest.approx(0.5)

    def test_after_an_update(self) -> None:
        lp = double([[-0.2, -1.1, -1, -1]]).requires_grad_()
        old = double([[-1, -1, -0.5, -1.1]])
        advantages = double([[0.5, 0.5, -1.5, -1.5]])
        total, loss_metrics = run(lp, old, advantages, torch.ones(1, 4) > 0, CPGD)
        total.backward()
        assert loss_metrics.terms["surrogate"].item() == pytest.approx(-0.05646903, abs=5e-9)
        assert loss_metrics.terms["drift"].item() == pytest.approx(0.03696727, abs=5e-9)
        assert total.item() == pytest.approx(-0.05609935, abs=1.5e-8)
        variant = -(advantages * old).sum().item() / 4
        assert loss_metrics.terms["surrogate"].item() + variant == pytest.approx(-0.40646903, abs=5e-9)
        assert total.item() + variant == pytest.approx(-0.40609935, abs=1.5e-8)
        torch.testing.assert_close(lp.grad, double([[0.003064, -0.125238, -0.000984, 0.375263]]), atol=5e-7, rtol=0)

    def test_drift_is_the_gradient_of_k3_of_kl_old_new(self) -> None:
        old, lp, step = double([-1.0, -0.8, -2.0]), double([-0.9, -1.4, -2.0]).requires_grad_(), 1e-6
        cpgd_drift(lp, old, cap=2.0).sum().backward()
        above, below = (KL["k3"](old, lp.detach() + sign * step) for sign in (1, -1))
        torch.testing.assert_close(lp.grad, (above - below) / (2 * step), atol=1e-8, rtol=0)

    def test_drift_pulls_back_with_a_capped_force_beyond_the_cap(self) -> None:
        lp = double([2.0, 60.0, 900.0]).requires_grad_()
        cpgd_drift(lp, torch.zeros(3).double(), cap=2.0).sum().backward()
        assert lp.grad.tolist() == [2.0, 2.0, 2.0]

    def test_drift_is_cpgds_own_unless_set(self) -> None:
        assert LossConfig(surrogate="cpgd").drift_coefficient == 0.01
        assert LossConfig(surrogate="cpgd", drift=0.0).drift_coefficient == 0.0
        assert LossConfig(surrogate="ppo_clip").drift_coefficient == 0.0


class TestClipping:
    @pytest.mark.parametrize("dual", [None, 3.0])
    def test_bounding_the_log_ratio_is_the_textbook_form(self, dual: float | None) -> None:
        rho = torch.linspace(-3, 3, 241, dtype=torch.float64)
        low, high = 0.2, 0.28
        for advantage in (1.7, -0.6, 0.0):
            r, a = rho.exp(), torch.full_like(rho, advantage)
            pessimistic = torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)
            if dual is not None and advantage < 0:
                pessimistic = torch.maximum(pessimistic, dual * a)
            found = ppo_clip(*alone(rho, a), LossConfig(clip_low=low, clip_high=high, dual_clip=dual))[0]
            torch.testing.assert_close(found, -pessimistic)
            log_form = torch.minimum(rho * a, rho.clamp(math.log(1 - low), math.log(1 + high)) * a)
            found = cpgd(*alone(rho, a), LossConfig(clip_low=low, clip_high=high))[0]
            torch.testing.assert_close(found, -log_form)

    @pytest.mark.parametrize(
        ("ratio", "advantage", "dual", "loss", "slope"),
        [
            (1.5, 2.0, None, -2.4, 0.0),
            (0.5, 2.0, None, -1.0, -1.0),
            (0.5, -2.0, None, 1.6, 0.0),
            (1.5, -2.0, None, 3.0, 3.0),
            (4.0, -2.0, None, 8.0, 8.0),
            (4.0, -2.0, 3.0, 6.0, 0.0),
            (4.0, 2.0, 3.0, -2.4, 0.0),
        ],
    )
    def test_ppo_by_hand(self, ratio: float, advantage: float, dual: float | None, loss: float, slope: float) -> None:
        rho = double([math.log(ratio)]).requires_grad_()
        value, _ = ppo_clip(*alone(rho, double([advantage])), LossConfig(dual_clip=dual))
        value.sum().backward()
        assert value.item() == pytest.approx(loss)
        assert rho.grad.item() == pytest.approx(slope)

    def test_a_token_without_advantage_is_not_clipped(self) -> None:
        lp, old = double([[0.5, 0.5, -0.5, 0.0]]), torch.zeros(1, 4).double()
        _, loss_metrics = run(lp, old, double([[1.0, 0.0, -1.0, 1.0]]), torch.ones(1, 4) > 0, LossConfig())
        assert loss_metrics.sums["clipped"].item() == 2

    def test_an_enormous_ratio_gives_no_nan(self) -> None:
        rho = torch.tensor([900.0, 900.0, -900.0]).requires_grad_()
        advantages = torch.tensor([1.0, -1.0, 1.0])
        (-bounded(rho, advantages, 0.2, 0.2, 3.0).exp() * advantages).sum().backward()
        assert rho.grad.tolist() == [0.0, 0.0, 0.0]


class TestKl:
    def test_values(self) -> None:
        lp, ref = double([-1.0]), double([-1.0 - math.log(2)])
        assert KL["k1"](lp, ref).item() == pytest.approx(math.log(2))
        assert KL["k2"](lp, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
        assert KL["k3"](lp, ref).item() == pytest.approx(math.log(2) - 0.5)

    def test_expected_gradients_on_policy(self) -> None:
        logits = double([0.3, -1.0, 0.8, 0.0])
        ref = torch.log_softmax(double([0.0, 0.5, -0.4, 0.2]), dim=0)

        def gradient(function) -> Tensor:
            theta = logits.clone().requires_grad_()
            function(torch.log_softmax(theta, dim=0)).backward()
            return theta.grad

        def sampled(name: str) -> Tensor:
            return gradient(lambda lp: (lp.exp().detach() * KL[name](lp, ref)).sum())

        reverse = gradient(lambda lp: (lp.exp() * (lp - ref)).sum())
        forward = gradient(lambda lp: (ref.exp() * (ref - lp)).sum())
        torch.testing.assert_close(sampled("k1"), torch.zeros(4).double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(sampled("k2"), reverse)
        torch.testing.assert_close(sampled("k3"), forward)
        # In the reward, the score function carries k1 to the gradient of KL(π‖ref); k2 and k3 do not.
        rewarded = {name: gradient(lambda lp, name=name: (lp.exp() * KL[name](lp, ref).detach()).sum()) for name in KL}
        torch.testing.assert_close(rewarded["k1"], reverse)
        assert not any(torch.allclose(rewarded[name], reverse, atol=1e-3) for name in ("k2", "k3"))

    @pytest.mark.parametrize(
        ("apply_to", "estimator", "allowed"),
        [
            ("loss", "k1", False),
            ("loss", "k2", True),
            ("loss", "k3", True),
            ("reward", "k1", True),
            ("reward", "k2", False),
            ("reward", "k3", False),
        ],
    )
    def test_where_each_is_allowed(self, apply_to: str, estimator: str, allowed: bool) -> None:
        values = {"coefficient": 0.1, "apply_to": apply_to, "estimator": estimator}
        if allowed:
            assert build(KlConfig, values).function is KL[estimator]
        else:
            with pytest.raises(ConfigError, match=f"estimator='{estimator}' with apply_to={apply_to}"):
                build(KlConfig, values)

    def test_apply_to_decides_the_default_estimator_and_the_loss(self) -> None:
        batch = random_batch()
        reference = batch.pop("ref")
        assert KlConfig(apply_to="reward").function is KL["k1"]
        assert KlConfig().function is KL["k3"]
        without, _ = run(**batch, config=LossConfig())
        in_reward = LossConfig(kl=KlConfig(coefficient=0.5, apply_to="reward"))
        assert run(**batch, config=in_reward, ref=reference)[0].item() == without.item()
        in_loss = LossConfig(kl=KlConfig(coefficient=0.5, estimator="k2"))
        k2 = ((batch["lp"] - reference).square() / 2)[batch["mask"]].mean()
        assert run(**batch, config=in_loss, ref=reference)[0].item() == pytest.approx((without + 0.5 * k2).item())


class TestAggregation:
    LOSS = double([[1.0, 2, 3, 4], [10.0, 99, 99, 99], [99.0, 99, 99, 99]])
    MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]) > 0

    @pytest.mark.parametrize(
        ("name", "size", "expected"),
        [("token_mean", 5, 20 / 5), ("sequence_mean", 2, (2.5 + 10) / 2), ("fixed", 2 * 8, 20 / 16)],
    )
    def test_by_hand(self, name: str, size: int, expected: float) -> None:
        config = LossConfig(aggregation=name, divisor=8 if name == "fixed" else None)
        assert denominator(self.MASK, config).item() == size
        assert aggregate(self.LOSS, self.MASK, denominator(self.MASK, config), name).item() == pytest.approx(expected)

    def test_fixed_needs_a_divisor(self) -> None:
        with pytest.raises(ConfigError, match="divisor"):
            build(LossConfig, {"aggregation": "fixed"})

    @pytest.mark.parametrize("name", AGGREGATIONS)
    def test_micro_batches_and_ranks_change_nothing(self, name: str) -> None:
        config = FULL.model_copy(update={"aggregation": name, "divisor": 11})
        batch = random_batch()
        batch["mask"][4] = False
        leaf = batch["lp"].requires_grad_()
        whole, loss_metrics = run(**batch, config=config)
        (expected,) = torch.autograd.grad(whole, leaf)
        for split in ([6], [1, 5], [2, 2, 2], [1] * 6):
            pieces = [
                dict(zip(batch, values, strict=True))
                for values in zip(*(tensor.split(split) for tensor in batch.values()), strict=True)
            ]
            size = sum(denominator(piece["mask"], config) for piece in pieces)
            results = [policy_loss(**piece, denominator=size, config=config) for piece in pieces]
            torch.testing.assert_close(sum(total for total, _ in results), whole)
            (gradient,) = torch.autograd.grad(sum(total for total, _ in results), leaf)
            torch.testing.assert_close(gradient, expected)
            for key, value in loss_metrics.terms.items():
                torch.testing.assert_close(sum(piece.terms[key] for _, piece in results), value)
            for key, value in loss_metrics.sums.items():
                torch.testing.assert_close(sum(piece.sums[key] for _, piece in results), value)
            assert max(piece.log_ratio_max for _, piece in results) == loss_metrics.log_ratio_max
            assert min(piece.log_ratio_min for _, piece in results) == loss_metrics.log_ratio_min

    @pytest.mark.parametrize("name", AGGREGATIONS)
    @pytest.mark.parametrize("junk", [7.0, float("inf"), float("nan")])
    def test_padding_and_order_change_nothing(self, name: str, junk: float) -> None:
        config = FULL.model_copy(update={"aggregation": name, "divisor": 11})
        batch = random_batch(1)
        whole, loss_metrics = run(**batch, config=config)
        order = torch.randperm(6)
        wide = {}
        for key, tensor in batch.items():
            filler = torch.zeros(6, 3) > 0 if key == "mask" else torch.full((6, 3), junk).double()
            wide[key] = torch.cat([filler, tensor, filler], dim=1)[order]
            if key != "mask":
                wide[key][~torch.cat([filler > 0, batch["mask"], filler > 0], dim=1)[order]] = junk
        wide["mask"] = torch.cat([torch.zeros(6, 3) > 0, batch["mask"], torch.zeros(6, 3) > 0], dim=1)[order]
        leaf = wide["lp"].requires_grad_()
        total, wide_watch = run(**wide, config=config)
        total.backward()
        torch.testing.assert_close(total.detach(), whole)
        assert (leaf.grad[~wide["mask"]] == 0).all()
        assert leaf.grad.isfinite().all()
        for key, value in loss_metrics.sums.items():
            torch.testing.assert_close(wide_watch.sums[key], value)


class TestPolicyLoss:
    @pytest.mark.parametrize("surrogate", ["ppo_clip", "cpgd"])
    @pytest.mark.parametrize("dual", [None, 3.0])
    @pytest.mark.parametrize("estimator", ["k2", "k3"])
    def test_gradient_by_finite_differences(self, surrogate: str, dual: float | None, estimator: str) -> None:
        batch = random_batch(3)
        config = LossConfig(
            surrogate=surrogate, dual_clip=dual, drift=0.0, kl=KlConfig(coefficient=0.5, estimator=estimator)
        )
        lp = batch.pop("lp").requires_grad_()
        assert torch.autograd.gradcheck(lambda x: run(x, **batch, config=config)[0], lp, eps=1e-7, atol=1e-6)

    def test_gradient_with_drift_by_finite_differences(self) -> None:
        """The reference integrates the capped drift force α·m·min(e^ρ − 1, c), which is linear past e^ρ = c + 1."""
        batch = random_batch(4)
        batch["lp"][0, 0] = batch["old"][0, 0] + 2.0
        config = LossConfig(surrogate="cpgd", drift=0.5)
        lp = batch["lp"].clone().requires_grad_()
        run(lp, batch["old"], batch["advantages"], batch["mask"], config)[0].backward()

        def potential(x: Tensor) -> Tensor:
            rho, edge = x - batch["old"], math.log(3.0)
            drift = torch.where(rho < edge, rho.exp() - 1 - rho, 2 - edge + 2 * (rho - edge))
            first, _ = run(x, batch["old"], batch["advantages"], batch["mask"], LossConfig(surrogate="cpgd", drift=0.0))
            return first + 0.5 * drift[batch["mask"]].mean()

        numeric = torch.zeros_like(lp)
        for apply_to in batch["mask"].nonzero().tolist():
            step = torch.zeros_like(lp)
            step[tuple(apply_to)] = 1e-6
            numeric[tuple(apply_to)] = (potential(batch["lp"] + step) - potential(batch["lp"] - step)).item() / 2e-6
        torch.testing.assert_close(lp.grad, numeric, atol=1e-8, rtol=0)

    @pytest.mark.parametrize("surrogate", SURROGATES)
    def test_the_first_update_is_the_policy_gradient(self, surrogate: str) -> None:
        batch = random_batch(5)
        lp = batch["old"].clone().requires_grad_()
        config = LossConfig(surrogate=surrogate, **CLIPS.get(surrogate, {}))
        run(lp, batch["old"], batch["advantages"], batch["mask"], config)[0].backward()
        expected = torch.where(batch["mask"], -batch["advantages"], 0) / batch["mask"].sum()
        torch.testing.assert_close(lp.grad, expected)

    def test_reported_metrics(self) -> None:
        old = double([[-1.0, -1.0, -1.0, -1.0]])
        lp = old + double([[0.5, 0.5, -0.5, 0.1]])
        advantages = double([[1.0, -1.0, 1.0, 1.0]])
        _, loss_metrics = run(lp, old, advantages, torch.ones(1, 4) > 0, LossConfig())
        # Above the range the clip acts on a positive advantage only; below it, on a negative one only.
        assert loss_metrics.sums["clipped"].item() == 1
        assert loss_metrics.sums["tokens"].item() == 4
        k3 = sum(math.exp(rho) - 1 - rho for rho in (0.5, 0.5, -0.5, 0.1))
        assert loss_metrics.sums["kl_old"].item() == pytest.approx(k3)
        assert loss_metrics.log_ratio_max.item() == pytest.approx(0.5)
        assert loss_metrics.log_ratio_min.item() == pytest.approx(-0.5)

    def test_importance_weights_scale_the_surrogate_only(self) -> None:
        batch = random_batch(6)
        weights = torch.full_like(batch["lp"], 0.25)
        plain, loss_metrics = run(**batch, config=FULL)
        weighted, weighted_watch = run(**batch, config=FULL, weights=weights)
        assert (plain - weighted).item() == pytest.approx(0.75 * loss_metrics.terms["surrogate"].item())
        for key in ("drift", "kl"):
            torch.testing.assert_close(weighted_watch.terms[key], loss_metrics.terms[key])

    @pytest.mark.parametrize(("aggregation", "bonus"), [("token_mean", 0.9 / 3), ("sequence_mean", (0.4 + 0.1) / 2)])
    def test_the_entropy_bonus_by_hand(self, aggregation: str, bonus: float) -> None:
        """With entropies 0.6, 0.2 and 0.1, 0.1 times their mean is subtracted, so its gradient is −0.1 times their
        weights.
        """
        mask = torch.tensor([[True, True], [True, False]])
        entropy = double([[0.6, 0.2], [0.1, 9.0]]).requires_grad_()
        zeros = torch.zeros(2, 2).double()
        config = LossConfig(entropy_coefficient=0.1, aggregation=aggregation)
        total, loss_metrics = run(zeros, zeros, zeros, mask, config, entropy=entropy)
        total.backward()
        assert total.item() == pytest.approx(-0.1 * bonus)
        weights = {"token_mean": [[1 / 3, 1 / 3], [1 / 3, 0]], "sequence_mean": [[1 / 4, 1 / 4], [1 / 2, 0]]}
        torch.testing.assert_close(entropy.grad, -0.1 * double(weights[aggregation]))
        assert loss_metrics.terms["surrogate"].item() == 0

    def test_an_empty_batch_is_our_own_mistake(self) -> None:
        batch = random_batch(7)
        batch["mask"][:] = False
        with pytest.raises(AssertionError, match="no response token"):
            run(**batch, config=FULL)


def test_value_loss_by_hand() -> None:
    values, old, returns = double([1.0, 1.0, 0.1]), double([0.0, 0.0, 0.0]), double([2.0, 0.0, 0.0])
    # clip 0.2: values become .2, .2, .1; the larger of the two squared errors counts, times one half.
    torch.testing.assert_close(value_loss(values, old, returns, clip=0.2), double([1.62, 0.5, 0.005]))
    torch.testing.assert_close(value_loss(values, old, returns, clip=None), double([0.5, 0.5, 0.005]))


def test_configurable_names_are_those_of_the_tables() -> None:
    fields = LossConfig.model_fields
    assert set(get_args(fields["aggregation"].annotation)) == set(AGGREGATIONS)
