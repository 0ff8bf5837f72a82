"""Test advantages: worked numbers, then invariances."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from mmprm.config import build
from mmprm.errors import ConfigError
from policy_rl.algorithms.advantages import (
    ESTIMATORS,
    AdvantageConfig,
    clamp,
    cpgd_clip_filter,
    dr_grpo,
    gae,
    grpo,
    keep,
    moments,
    reinforce_pp,
    returns_to_go,
    rloo,
    tabulate,
    whiten,
)

HALF_RIGHT = [[1.0, 0.0, 0.0, 1.0]]


def groups(rewards: list[list[float | None]], least: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rewards_PK, known_PK = tabulate(rewards, dtype=torch.float64)
    return rewards_PK, keep(known_PK, least)


def random_groups(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    rewards_PK = torch.randint(0, 3, (6, 5)).double() / 2
    return rewards_PK, keep(torch.rand(6, 5) > 0.2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rloo", [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
        ("grpo", [math.sqrt(3) / 2, -math.sqrt(3) / 2, -math.sqrt(3) / 2, math.sqrt(3) / 2]),
        ("grpo_batch_std", [math.sqrt(3) / 2, -math.sqrt(3) / 2, -math.sqrt(3) / 2, math.sqrt(3) / 2]),
        ("dr_grpo", [0.5, -0.5, -0.5, 0.5]),
        ("reinforce_pp", [1.0, 0.0, 0.0, 1.0]),
        ("reinforce_pp_baseline", [0.5, -0.5, -0.5, 0.5]),
        ("cpgd", [0.5, -0.5, -0.5, 0.5]),
        ("cpgd_inverse_std", [math.sqrt(3) / 2, -math.sqrt(3) / 2, -math.sqrt(3) / 2, math.sqrt(3) / 2]),
        ("cpgd_clip_filter", [0.5, -0.5, -0.5, 0.5]),
    ],
)
def test_a_half_correct_group(name: str, expected: list[float]) -> None:
    advantages_PK = ESTIMATORS[name].advantages(*groups(HALF_RIGHT))
    torch.testing.assert_close(advantages_PK, torch.tensor([expected]).double(), atol=2e-6, rtol=0)


def test_the_standard_deviation_of_the_batch() -> None:
    """Four of eight rewards are 1, so std = √(2/7). GRPO would give the nearly unanimous groups 1.5 and −0.5."""
    rewards_PK, kept_PK = groups([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    found_PK = ESTIMATORS["grpo_batch_std"].advantages(rewards_PK, kept_PK)
    scale = math.sqrt(7 / 2)
    expected = [[0.75 * scale, *[-0.25 * scale] * 3], [*[0.25 * scale] * 3, -0.75 * scale]]
    torch.testing.assert_close(found_PK, torch.tensor(expected).double(), atol=1e-5, rtol=0)
    easy_PK, kept_PK = groups([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    assert ESTIMATORS["grpo_batch_std"].advantages(easy_PK, kept_PK)[0].tolist() == [0.0] * 4
    assert ESTIMATORS["grpo_batch_std"].advantages(easy_PK * 0 + 0.3, kept_PK).tolist() == [[0.0] * 4] * 2


def test_unknown_verdict_leaves_the_group_and_a_single_sample_drops_it() -> None:
    rewards_PK, kept_PK = groups([[1.0, 0.0, None, 1.0], [1.0, None, None, None], [0.0, 1.0]])
    assert kept_PK.tolist() == [[True, True, False, True], [False] * 4, [True, True, False, False]]
    # K = 3 in the first group: (3·1 − 2)/2 and (3·0 − 2)/2; an unknown counted as 0 would give 2/3 and −2/3.
    assert rloo(rewards_PK, kept_PK).tolist() == [[0.5, -1.0, 0.0, 0.5], [0.0] * 4, [-1.0, 1.0, 0.0, 0.0]]


def test_an_estimator_without_group_baseline_keeps_a_single_sample() -> None:
    rewards_PK, kept_PK = groups([[0.7, None]], ESTIMATORS["reinforce_pp"].least)
    assert reinforce_pp(rewards_PK, kept_PK).tolist() == [[0.7, 0.0]]
    assert {name for name, row in ESTIMATORS.items() if row.least == 1} == {"reinforce_pp", "gae"}


def test_unknown_reward_may_be_nan() -> None:
    rewards_PK = torch.tensor([[1.0, 0.0, float("nan")]])
    for row in ESTIMATORS.values():
        assert row.advantages(rewards_PK, keep(~rewards_PK.isnan(), row.least)).isfinite().all()


def test_unanimous_group_has_no_advantage() -> None:
    """In binary, 0.1 + 0.1 + 0.1 is not 0.3, so comparing the standard deviation with 0 would fail.

    In float32, which runs use, the rounding error is no smaller than ε.
    """
    for reward in (0.1, 0.9, 1.2, 7.3, 101.1):
        rewards_PK, kept_PK = groups([[reward] * 8])
        for name in ("rloo", "grpo", "dr_grpo", "cpgd_inverse_std", "cpgd_clip_filter"):
            assert ESTIMATORS[name].advantages(rewards_PK.float(), kept_PK).abs().max() < 1e-5 * reward, name
        assert (grpo(rewards_PK.float(), kept_PK) == 0).all()


@pytest.mark.parametrize(
    ("unanimous", "split", "weight"),
    [(0, 2, 1.0), (2, 2, 2.0), (1, 2, 1.5), (5, 1, 3.0), (4, 0, 3.0)],
)
def test_clip_filter_weight(unanimous: int, split: int, weight: float) -> None:
    rewards_PK, kept_PK = groups([[0.1, 0.1, 0.1]] * unanimous + [[1.0, 0.0, 0.0]] * split)
    torch.testing.assert_close(cpgd_clip_filter(rewards_PK, kept_PK), weight * dr_grpo(rewards_PK, kept_PK))


def test_clip_filter_counts_kept_groups_only() -> None:
    rewards_PK, kept_PK = groups([[1.0, 0.0], [1.0, None], [None, None]])
    assert cpgd_clip_filter(rewards_PK, kept_PK).tolist() == [[0.5, -0.5], [0.0, 0.0], [0.0, 0.0]]


def test_cpgd_is_rloo_times_k_minus_1_over_k() -> None:
    rewards_PK, kept_PK = random_groups(0)
    count_P1 = kept_PK.sum(1, keepdim=True).clamp(min=1)
    advantages_PK = ESTIMATORS["cpgd"].advantages(rewards_PK, kept_PK)
    torch.testing.assert_close(advantages_PK, rloo(rewards_PK, kept_PK) * (count_P1 - 1) / count_P1)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_invariant_to_order_padding_and_dropped_values(name: str) -> None:
    rewards_PK, kept_PK = random_groups(1)
    estimate = ESTIMATORS[name].advantages
    advantages_PK = estimate(rewards_PK, kept_PK)
    rows, columns = torch.randperm(6), torch.randperm(5)
    permuted_PK = estimate(rewards_PK[rows][:, columns], kept_PK[rows][:, columns])
    torch.testing.assert_close(permuted_PK, advantages_PK[rows][:, columns])
    padded_PK = estimate(
        torch.cat([rewards_PK, torch.full((6, 2), 9.0)], dim=1), torch.cat([kept_PK, torch.zeros(6, 2) > 0], dim=1)
    )
    torch.testing.assert_close(padded_PK[:, :5], advantages_PK)
    noisy_PK = estimate(torch.where(kept_PK, rewards_PK, 123.0), kept_PK)
    torch.testing.assert_close(noisy_PK, advantages_PK)
    assert (advantages_PK[~kept_PK] == 0).all()


def test_group_advantages_ignore_a_shift_of_the_rewards() -> None:
    rewards_PK, kept_PK = random_groups(2)
    for function in (rloo, grpo, dr_grpo, cpgd_clip_filter):
        torch.testing.assert_close(function(rewards_PK + 3, kept_PK), function(rewards_PK, kept_PK))
    torch.testing.assert_close(grpo(rewards_PK * 7, kept_PK), grpo(rewards_PK, kept_PK), atol=1e-4, rtol=0)


def test_gae_by_hand() -> None:
    # γ 0.9, λ 0.8: δ = .04, .03, .3; A_3 = .3, A_2 = .03 + .72·.3, A_1 = .04 + .72·A_2
    rewards_NT, values_NT = torch.tensor([[0.0, 0.0, 1.0]]).double(), torch.tensor([[0.5, 0.6, 0.7]]).double()
    advantages_NT, returns_NT = gae(rewards_NT, values_NT, torch.ones(1, 3) > 0, gamma=0.9, lam=0.8)
    torch.testing.assert_close(advantages_NT, torch.tensor([[0.21712, 0.246, 0.3]]).double())
    torch.testing.assert_close(returns_NT, torch.tensor([[0.71712, 0.846, 1.0]]).double())


def test_gae_with_lambda_1_is_the_return_minus_the_value() -> None:
    torch.manual_seed(0)
    rewards_NT, values_NT = torch.randn(3, 6).double(), torch.randn(3, 6).double()
    mask_NT = torch.ones(3, 6) > 0
    advantages_NT, _ = gae(rewards_NT, values_NT, mask_NT, gamma=0.9, lam=1.0)
    torch.testing.assert_close(advantages_NT, returns_to_go(rewards_NT, mask_NT, gamma=0.9) - values_NT)


def test_gae_skips_masked_tokens_at_any_position() -> None:
    rewards_NT, values_NT = torch.tensor([[0.0, 0.0, 1.0]]).double(), torch.tensor([[0.5, 0.6, 0.7]]).double()
    expected_NT, _ = gae(rewards_NT, values_NT, torch.ones(1, 3) > 0, 0.9, 0.8)
    position = torch.tensor([1, 2, 5])
    wide_rewards_NT, wide_values_NT = torch.full((1, 8), 5.0).double(), torch.full((1, 8), float("nan")).double()
    wide_rewards_NT[:, position], wide_values_NT[:, position] = rewards_NT, values_NT
    mask_NT = torch.zeros(1, 8) > 0
    mask_NT[:, position] = True
    advantages_NT, returns_NT = gae(wide_rewards_NT, wide_values_NT, mask_NT, 0.9, 0.8)
    torch.testing.assert_close(advantages_NT[:, position], expected_NT)
    assert (advantages_NT[~mask_NT] == 0).all()
    assert (returns_NT[~mask_NT] == 0).all()


def test_returns_to_go_by_hand() -> None:
    rewards_NT = torch.tensor([[1.0, 2.0, 4.0, 100.0]])
    mask_NT = torch.tensor([[True, True, True, False]])
    assert returns_to_go(rewards_NT, mask_NT, gamma=1.0).tolist() == [[7.0, 6.0, 4.0, 0.0]]
    assert returns_to_go(rewards_NT, mask_NT, gamma=0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]


def test_whitening_is_over_tokens_of_the_whole_batch() -> None:
    # One response of three tokens at +1 and one of one token at −1: mean 1/2, variance 3/4 (biased).
    values_NT = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 9.0, 9.0]]).double()
    mask_NT = torch.tensor([[True, True, True], [True, False, False]])
    whitened_NT = whiten(values_NT, mask_NT, moments(values_NT, mask_NT))
    high, low = 0.5 / math.sqrt(0.75), -1.5 / math.sqrt(0.75)
    torch.testing.assert_close(whitened_NT, torch.tensor([[high, high, high], [low, 0, 0]]).double())


def test_whitening_on_two_ranks_equals_one() -> None:
    torch.manual_seed(0)
    values_NT, mask_NT = torch.randn(7, 9) * 3 + 1, torch.rand(7, 9) > 0.3
    whole_NT = whiten(values_NT, mask_NT, moments(values_NT, mask_NT))
    both = moments(values_NT[:2], mask_NT[:2]) + moments(values_NT[2:], mask_NT[2:])
    parts_NT = torch.cat([whiten(values_NT[part], mask_NT[part], both) for part in (slice(0, 2), slice(2, 7))])
    torch.testing.assert_close(parts_NT, whole_NT)
    assert parts_NT[mask_NT].mean().abs() < 1e-6
    assert abs(parts_NT[mask_NT].std(unbiased=False) - 1) < 1e-6


def test_whitening_a_constant_or_nothing_gives_zero() -> None:
    values_NT, mask_NT = torch.full((2, 3), 0.1), torch.ones(2, 3) > 0
    assert whiten(values_NT, mask_NT, moments(values_NT, mask_NT)).abs().max() < 1e-3
    assert whiten(values_NT, ~mask_NT, moments(values_NT, ~mask_NT)).tolist() == [[0.0] * 3] * 2


def test_clamp() -> None:
    assert clamp(torch.tensor([-30.0, 4.0, 11.0]), 10.0).tolist() == [-10.0, 4.0, 10.0]
    assert clamp(torch.tensor([-30.0, 4.0]), None).tolist() == [-30.0, 4.0]


@pytest.mark.parametrize(
    ("key", "value"), [("clamp", -1), ("clamp", 0), ("gamma", 5), ("gamma", -0.1), ("lam", -2), ("lam", 1.1)]
)
def test_numbers_without_a_meaning_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        build(AdvantageConfig, {key: value})


def test_every_configurable_estimator_is_in_the_table() -> None:
    assert set(get_args(AdvantageConfig.model_fields["estimator"].annotation)) == set(ESTIMATORS)
