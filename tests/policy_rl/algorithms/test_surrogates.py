"""Test CISPO, GSPO, and a custom surrogate: worked numbers, gradients, then invariances."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_rl import make_config
from torch import Tensor

from mmprm.config import build
from mmprm.errors import ConfigError, TrainingError
from policy_rl.algorithms.losses import LossConfig, denominator, policy_loss
from policy_rl.algorithms.surrogates import SURROGATES, surrogate_of
from policy_rl.checks.early import check_early

LN = math.log
NARROW = {"clip_low": 0.1, "clip_high": 0.2}


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def result(lp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, config: LossConfig):
    """Return (loss, gradient with respect to lp, number of clipped tokens)."""
    lp = lp.clone().requires_grad_()
    loss, metrics = policy_loss(lp, old, advantages, mask, denominator(mask, config), config)
    loss.backward()
    return loss.item(), lp.grad, metrics.sums["clipped"].item()


class TestCispo:
    """Test CISPO: the gradient of −min(r, 1.2)·A·lp is −min(r, 1.2)·A, with r as a constant."""

    OLD = double([[-1.0, -1.0, -1.0, -1.0]])
    LP = OLD + double([[LN(0.5), LN(1.1), LN(2.0), LN(4.0)]])
    ADVANTAGES = double([[1.0, -2.0, 3.0, -1.0]])
    MASK = torch.ones(1, 4, dtype=torch.bool)

    def test_by_hand(self) -> None:
        config = LossConfig(surrogate="cispo", clip_high=0.2)
        loss, gradient, clipped = result(self.LP, self.OLD, self.ADVANTAGES, self.MASK, config)
        weights = [0.5, 1.1, 1.2, 1.2]
        each = [-w * a * lp for w, a, lp in zip(weights, (1, -2, 3, -1), self.LP[0].tolist(), strict=True)]
        assert loss == pytest.approx(sum(each) / 4)
        torch.testing.assert_close(gradient, double([[-0.5, 2.2, -3.6, 1.2]]) / 4)
        assert clipped == 2

    def test_a_clipped_token_still_learns_unlike_ppo(self) -> None:
        """At r = 2 and A = 3, PPO's clip removes the gradient, while CISPO keeps it with weight 1.2."""
        for surrogate, expected in (("ppo_clip", 0.0), ("cispo", -3.6 / 4)):
            _, gradient, _ = result(self.LP, self.OLD, self.ADVANTAGES, self.MASK, LossConfig(surrogate=surrogate))
            assert gradient[0, 2].item() == pytest.approx(expected)

    @pytest.mark.parametrize(("key", "value"), [("clip_low", 0.1), ("dual_clip", 3.0)])
    def test_options_without_effect_are_refused(self, key: str, value: float) -> None:
        with pytest.raises(ConfigError, match=f"{key}={value} has no effect with surrogate=cispo"):
            build(LossConfig, {"surrogate": "cispo", key: value})


class TestGspo:
    """Test GSPO on three responses with mean log-ratios ln 1.5, 0 and −ln 2; the last token of the first is masked."""

    OLD = double([[-1.0, -1.0, 0.0], [-1.0, -1.0, -1.0], [-1.0, -2.0, -3.0]])
    RHO = double([[LN(3), LN(0.75), 5.0], [0.3, -0.3, 0.0], [-LN(2), -LN(4), 0.0]])
    MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]]) > 0
    CONFIG = LossConfig(surrogate="gspo", aggregation="sequence_mean", **NARROW)

    def test_by_hand(self) -> None:
        """s = 1.5, 1 and 0.5 with A = 1, −1 and 2: only the first is clipped, at 1.2, and has no gradient."""
        advantages = double([[1.0] * 3, [-1.0] * 3, [2.0] * 3])
        loss, gradient, clipped = result(self.OLD + self.RHO, self.OLD, advantages, self.MASK, self.CONFIG)
        assert loss == pytest.approx((-1.2 + 1.0 - 2 * 0.5) / 3)
        torch.testing.assert_close(gradient, double([[0.0] * 3, [1 / 9] * 3, [-1 / 9] * 3]))
        assert clipped == 2

    def test_equal_advantages_give_the_gradient_of_the_sequence_ratio(self) -> None:
        """The reference is −mean over responses of min(s·A, clip(s)·A) with s = exp(mean ρ), differentiated
        through s.
        """
        advantages_N1 = double([[1.0], [-1.0], [2.0]])
        lp = (self.OLD + self.RHO).requires_grad_()
        rho = torch.where(self.MASK, lp - self.OLD, 0)
        s_N1 = (rho.sum(dim=1, keepdim=True) / self.MASK.sum(dim=1, keepdim=True)).exp()
        (-torch.minimum(s_N1 * advantages_N1, s_N1.clamp(0.9, 1.2) * advantages_N1).mean()).backward()
        found = result(lp.detach(), self.OLD, advantages_N1.expand(3, 3), self.MASK, self.CONFIG)[1]
        torch.testing.assert_close(found, lp.grad)

    def test_credit_of_a_step_stays_with_its_tokens(self) -> None:
        advantages = double([[1.0] * 3, [1.0, 0.0, -2.0], [0.0] * 3])
        _, gradient, _ = result(self.OLD + self.RHO, self.OLD, advantages, self.MASK, self.CONFIG)
        torch.testing.assert_close(gradient[1], double([-1.0, 0.0, 2.0]) / 9)

    def test_a_response_of_one_token_is_ppo(self) -> None:
        lp, old, advantages = double([[-0.9], [-2.0]]), double([[-1.0], [-1.0]]), double([[1.0], [-1.0]])
        mask = torch.ones(2, 1, dtype=torch.bool)
        ours = result(lp, old, advantages, mask, self.CONFIG)
        theirs = result(lp, old, advantages, mask, LossConfig(aggregation="sequence_mean", **NARROW))
        assert ours[0] == pytest.approx(theirs[0])
        torch.testing.assert_close(ours[1], theirs[1])

    @pytest.mark.parametrize("given", [{}, {"clip_low": 3e-4}, {"clip_high": 4e-4}])
    def test_it_needs_its_own_clip_range(self, given: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="set clip_low and clip_high, such as"):
            build(LossConfig, {"surrogate": "gspo", **given})


def make_batch(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand((5, 6), generator=generator, dtype=torch.float64) * 3
    lp = old + torch.randn((5, 6), generator=generator, dtype=torch.float64) * 0.4
    advantages = torch.randn((5, 6), generator=generator, dtype=torch.float64)
    return lp, old, advantages, torch.arange(6) < torch.randint(1, 7, (5, 1), generator=generator)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_padding_order_and_micro_batches_change_nothing(surrogate: str) -> None:
    config = LossConfig(surrogate=surrogate, **(NARROW if surrogate == "gspo" else {}))
    lp, old, advantages, mask = batch = make_batch(0)
    loss, gradient, clipped = result(*batch, config)
    order = torch.tensor([3, 0, 4, 1, 2])
    wide = [torch.nn.functional.pad(each, (2, 1), value=0 if each is mask else 9)[order] for each in batch]
    wide_loss, wide_gradient, wide_clipped = result(*wide, config)
    assert (wide_loss, wide_clipped) == (pytest.approx(loss), clipped)
    torch.testing.assert_close(wide_gradient[:, 2:-1], gradient[order])
    leaf, size = lp.clone().requires_grad_(), denominator(mask, config)
    parts = zip(leaf.split(2), old.split(2), advantages.split(2), mask.split(2), strict=True)
    total = sum(policy_loss(*part, size, config)[0] for part in parts)
    total.backward()
    assert total.item() == pytest.approx(loss)
    torch.testing.assert_close(leaf.grad, gradient)


MODULE = """
import torch
def unclipped(lp, old, advantages, mask, config):
    return -(lp - old).exp() * advantages * (1 + config.clip_high), torch.zeros_like(mask)
def only_a_loss(lp, old, advantages, mask, config):
    return -lp * advantages
def a_sum(lp, old, advantages, mask, config):
    return (-lp * advantages).sum(), mask
def a_clip_of_numbers(lp, old, advantages, mask, config):
    return -lp * advantages, torch.zeros_like(lp)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_surrogates.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_surrogates", raising=False)
    surrogate_of.cache_clear()
    return "own_surrogates"


def test_a_users_surrogate_by_import_path(module: str) -> None:
    lp, old, advantages, mask = make_batch(1)
    config = build(LossConfig, {"surrogate": f"{module}:unclipped", "clip_high": 0.5})
    loss, gradient, clipped = result(lp, old, advantages, mask, config)
    expected = torch.where(mask, -1.5 * (lp - old).exp() * advantages, 0) / mask.sum()
    assert (loss, clipped, config.drift_coefficient) == (pytest.approx(expected.sum().item()), 0, 0.0)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ["only_a_loss", "a_sum", "a_clip_of_numbers"])
def test_a_users_surrogate_returns_two_values_per_token(module: str, name: str) -> None:
    with pytest.raises(TrainingError, match=rf"{module}:{name}' must return a tuple .* of shape \(5, 6\)"):
        result(*make_batch(1), LossConfig(surrogate=f"{module}:{name}"))


def test_a_missing_surrogate_is_reported_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"surrogate='ppo' must be one of ppo_clip, cpgd, cispo, gspo, or the import"):
        build(LossConfig, {"surrogate": "ppo"})
    config = make_config(tmp_path, trainer={"loss": {"surrogate": "no_such:f"}})
    with pytest.raises(ConfigError, match=r"trainer\.loss\.surrogate='no_such:f' cannot be imported: No module named"):
        check_early(config)
