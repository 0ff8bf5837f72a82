"""Test importance weights and masks of tokens whose probability differs between trainer and engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprm.config import build
from mmprm.errors import ConfigError
from policy_rl.algorithms.importance import (
    RATIO_LEVELS,
    ImportanceMask,
    importance_weights,
    inside_range,
    mismatch,
    truncated_weights,
)
from policy_rl.algorithms.losses import LossConfig, denominator, policy_loss

LN = math.log


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ENGINE = double([[-1.0, -1.0, -1.0, -1.0], [-2.0, -2.0, -2.0, 7.0]])
RATIOS = double([[0.4, 1.0, 4.0, 6.0], [0.6, 0.6, 4.0, float("nan")]])
OLD = ENGINE + RATIOS.log()
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]) > 0
ICEPOP = ImportanceMask(low=0.5, high=5.0)


def test_truncated_weights_by_hand() -> None:
    engine, old = double([[-1.0, -1.0, -900.0, -1.0]]), double([[-1.5, -0.9, -1.0, float("nan")]])
    weights = truncated_weights(old, engine, torch.tensor([[True, True, True, False]]), cap=2.0)
    torch.testing.assert_close(weights, double([[math.exp(-0.5), math.exp(0.1), 2.0, 0.0]]))


def test_icepop_by_hand() -> None:
    """IcePop's weight is the ratio inside [0.5, 5] and 0 outside."""
    weights = importance_weights(OLD, ENGINE, MASK, cap=5.0, limits=ICEPOP)
    torch.testing.assert_close(weights, double([[0.0, 1.0, 4.0, 0.0], [0.6, 0.6, 4.0, 0.0]]))


def test_a_mask_without_a_cap_weights_nothing() -> None:
    weights = importance_weights(OLD, ENGINE, MASK, cap=None, limits=ICEPOP)
    assert weights.tolist() == [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    assert importance_weights(OLD, ENGINE, MASK, cap=None, limits=None) is None


@pytest.mark.parametrize(("high", "expected"), [(1.7, [False, True]), (1.8, [True, True]), (1.0, [False, False])])
def test_the_geometric_mean_decides_over_a_whole_response(high: float, expected: list[bool]) -> None:
    """The means (0.4·1·4·6)^¼ = 1.7602 and (0.6·0.6·4)^⅓ = 1.1292 decide, although single ratios reach 4 or more."""
    inside = inside_range(OLD, ENGINE, MASK, ImportanceMask(level="sequence", low=0.999, high=high))
    assert inside.tolist() == [[expected[0]] * 4, [expected[1]] * 3 + [False]]


@pytest.mark.parametrize("level", RATIO_LEVELS)
def test_padding_order_and_micro_batches_change_nothing(level: str) -> None:
    limits = ImportanceMask(level=level, low=0.6, high=1.6)
    generator = torch.Generator().manual_seed(0)
    old, engine = (torch.randn(6, 5, generator=generator) * 0.5 for _ in range(2))
    mask = torch.arange(5) < torch.randint(1, 6, (6, 1), generator=generator)
    whole, order = importance_weights(old, engine, mask, 1.5, limits), torch.tensor([5, 2, 0, 1, 4, 3])
    wide = [torch.nn.functional.pad(each, (1, 2), value=False if each is mask else 9)[order] for each in (old, engine)]
    mask_wide = torch.nn.functional.pad(mask, (1, 2))[order]
    assert 0 < (whole > 0).sum() < mask.sum()
    torch.testing.assert_close(importance_weights(*wide, mask_wide, 1.5, limits)[:, 1:-2], whole[order])
    parts = zip(old.split(2), engine.split(2), mask.split(2), strict=True)
    torch.testing.assert_close(torch.cat([importance_weights(*part, 1.5, limits) for part in parts]), whole)


def test_a_masked_token_has_no_gradient_and_still_counts_in_the_mean() -> None:
    """On policy with A = 1, the gradient is −weight / 4 tokens, whichever tokens are masked."""
    config = LossConfig(importance_mask=ICEPOP)
    lp, mask = OLD[:1].clone().requires_grad_(), MASK[:1]
    weights = importance_weights(OLD[:1], ENGINE[:1], mask, None, ICEPOP)
    size = denominator(mask, config)
    loss, metrics = policy_loss(lp, OLD[:1], torch.ones(1, 4).double(), mask, size, config, weights=weights)
    loss.backward()
    assert lp.grad.tolist() == [[0.0, -0.25, -0.25, 0.0]]
    assert (metrics.sums["importance_masked"].item(), metrics.sums["tokens"].item()) == (2, 4)


@pytest.mark.parametrize("values", [{"low": 1.5, "high": 2}, {"low": 0.5, "high": 0.9}, {"low": 0.5}, {"low": 0}])
def test_a_range_contains_1(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"importance_mask\.(low|high)"):
        build(LossConfig, {"importance_mask": values})


def test_mismatch_by_hand() -> None:
    engine, old = double([[-1.0, -1.0, 7.0]]), double([[-1.5, -0.9, -1.0]])
    sums, largest = mismatch(old, engine, torch.tensor([[True, True, False]]))
    assert sums["absolute"].item() == pytest.approx(0.6)
    assert sums["signed"].item() == pytest.approx(-0.4)
    assert sums["tokens"].item() == 2
    assert largest.item() == pytest.approx(0.5)
