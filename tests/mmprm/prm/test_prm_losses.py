"""Test the soft cross-entropy on the two judgment logits."""

from __future__ import annotations

import math

import pytest
import torch

from mmprm.prm.losses import soft_cross_entropy_sum

NAN = float("nan")


def test_worked_numbers() -> None:
    """Logits [ln 3, 0] give p = 3/4. y = 1: ln 4/3 = 0.287682; y = 0: ln 4 = 1.386294; y = 0.94: their mixture
    0.353599.
    """
    logits_M2 = torch.tensor([[math.log(3), 0.0]])
    for target, expected in ((1.0, 0.287682), (0.0, 1.386294), (0.94, 0.353599), (0.5, 0.836988)):
        assert soft_cross_entropy_sum(logits_M2, torch.tensor([target])).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_is_p_minus_y() -> None:
    logits_M2 = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], requires_grad=True)
    soft_cross_entropy_sum(logits_M2, torch.tensor([0.94, 0.25])).backward()
    expected_M2 = torch.tensor([[0.75 - 0.94, 0.94 - 0.75], [0.5 - 0.25, 0.25 - 0.5]])
    torch.testing.assert_close(logits_M2.grad, expected_M2)


def test_minimum_is_at_the_target() -> None:
    """The loss of a soft target is minimal at p = y, where it is the entropy of y; a truncated target would differ."""
    p_K = torch.linspace(0.01, 0.99, 99)
    losses = [soft_cross_entropy_sum(torch.stack([p.log(), (1 - p).log()])[None], torch.tensor([0.94])) for p in p_K]
    assert p_K[int(torch.stack(losses).argmin())].item() == pytest.approx(0.94)
    assert min(losses).item() == pytest.approx(-(0.94 * math.log(0.94) + 0.06 * math.log(0.06)), abs=1e-6)


def test_unlabeled_steps_have_weight_zero() -> None:
    logits_M2 = torch.randn(4, 2, requires_grad=True)
    target_M = torch.tensor([0.3, NAN, 1.0, NAN])
    soft_cross_entropy_sum(logits_M2, target_M).backward()
    assert logits_M2.grad is not None
    assert logits_M2.grad[[1, 3]].abs().sum() == 0
    alone = soft_cross_entropy_sum(logits_M2[[0, 2]], target_M[[0, 2]])
    torch.testing.assert_close(soft_cross_entropy_sum(logits_M2, target_M), alone)
    assert soft_cross_entropy_sum(logits_M2[:1], torch.tensor([NAN])).item() == 0


def test_a_sum_splits() -> None:
    logits_M2, target_M = torch.randn(7, 2), torch.rand(7)
    whole = soft_cross_entropy_sum(logits_M2, target_M)
    parts = soft_cross_entropy_sum(logits_M2[:3], target_M[:3]) + soft_cross_entropy_sum(logits_M2[3:], target_M[3:])
    torch.testing.assert_close(whole, parts)


def test_integer_targets_are_refused() -> None:
    with pytest.raises(AssertionError, match="floating point"):
        soft_cross_entropy_sum(torch.zeros(1, 2), torch.tensor([0.94]).long())


def test_the_loss_of_bf16_logits_is_computed_in_float32() -> None:
    logits_M2 = torch.tensor([[2.0, -1.0]], dtype=torch.bfloat16)
    loss = soft_cross_entropy_sum(logits_M2, torch.tensor([0.94]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_cross_entropy_sum(logits_M2.float(), torch.tensor([0.94])))
