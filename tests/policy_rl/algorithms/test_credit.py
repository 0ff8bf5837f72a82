"""Test the credit of process rewards: worked numbers, then invariances."""

from __future__ import annotations

import itertools
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor

from mmprm.config import build
from policy_rl.algorithms.advantages import ESTIMATORS
from policy_rl.algorithms.baselines import ScoredSteps
from policy_rl.algorithms.credit import (
    MODES,
    Outcomes,
    Source,
    assign,
    combine,
    count_tokens,
    scatter_to_tokens,
    spread,
)
from policy_rl.algorithms.credit_config import CreditConfig


def scored(scores: list[list[list[float]]], tokens: list[list[list[int]]] | None = None) -> ScoredSteps:
    """Return the steps of groups given as nested lists, with 10 tokens per step by default."""
    width = max(len(steps) for group in scores for steps in group)
    pad = [[[*steps, *[0.0] * (width - len(steps))] for steps in group] for group in scores]
    tokens = tokens or [[[10] * len(steps) for steps in group] for group in scores]
    counts = [[[*steps, *[0] * (width - len(steps))] for steps in group] for group in tokens]
    lengths_PK = torch.tensor([[len(steps) for steps in group] for group in scores])
    return ScoredSteps(
        torch.tensor(pad, dtype=torch.float64), torch.tensor(counts), torch.arange(width) < lengths_PK[..., None]
    )


def credit(
    steps: ScoredSteps,
    kept: list | None = None,
    correct: list | None = None,
    rewards: list | None = None,
    lam: float = 1.0,
    scale: float = 1.0,
    aggregate=min,
    **values,
):
    shape = steps.mask_PKS.shape[:2]
    kept_PK = torch.tensor(kept) if kept else torch.ones(shape) > 0
    correct_PK = torch.tensor(correct) if correct else torch.ones(shape) > 0
    rewards_PK = torch.tensor(rewards).double() if rewards else torch.zeros(shape).double()
    outcomes = Outcomes(rewards_PK, kept_PK, scale, lam)
    return assign(steps, kept_PK, correct_PK, build(CreditConfig, values), aggregate, outcomes)


def assert_near(actual: Tensor, expected: list, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


ONE = [[[0.9, 0.1, 0.8]]]


class TestMinForm:
    def test_soft_and_strict_differ_after_the_lowest_step(self) -> None:
        soft = credit(scored(ONE), mode="soft_min", baseline="none").returns_PKS
        assert_near(soft, [[[-0.8, -0.8, 0.0]]], 1e-5)
        strict = credit(scored(ONE), mode="strict_min", baseline="none").returns_PKS
        assert_near(strict, [[[-0.8, -0.8, 0.6]]])

    def test_soft_weights_by_hand(self) -> None:
        # r = (.2, .1); w ∝ e^(−2), e^(−1): w = (.26894142, .73105858); z = w·r
        returns_PKS = credit(scored([[[0.6, 0.55]]]), mode="soft_min", baseline="none").returns_PKS
        assert_near(returns_PKS, [[[0.2 * 0.26894142 + 0.1 * 0.73105858, 0.1 * 0.73105858]]], 1e-8)

    def test_token_baseline_by_hand(self) -> None:
        # One step per response: R* = .8 over 10 tokens, −.6 over 20, .4 over 5.
        steps = scored([[[0.9], [0.2], [0.7]]], [[[10], [20], [5]]])
        expected = [[[0.8 - (-0.2 / 25) * 10], [-0.6 - (1.2 / 15) * 20], [0.4 - (0.2 / 30) * 5]]]
        for mode in ("soft_min", "strict_min"):
            assert_near(credit(steps, mode=mode, baseline="pure_tokens").returns_PKS, expected)

    def test_token_baseline_counts_the_tokens_still_to_come(self) -> None:
        values = {"mode": "strict_min", "baseline": "pure_tokens"}
        steps = scored([[[0.9, 0.1, 0.8], [0.5]]], [[[2, 3, 4], [6]]])
        # The other response has reward 0 on 6 tokens, so only its baseline matters: R* = −.8 over 9 tokens.
        assert_near(credit(steps, **values).returns_PKS[0, 0], [-0.8, -0.8, 0.6])
        assert_near(credit(steps, **values).returns_PKS[0, 1, :1], [0.8 / 9 * 6])
        other = scored([[[0.9, 0.1, 0.8], [1.0]]], [[[2, 3, 4], [5]]])
        assert_near(credit(other, **values).returns_PKS[0, 0], [-0.8 - 9 / 5, -0.8 - 7 / 5, 0.6 - 4 / 5])

    def test_merging_steps_earns_nothing(self) -> None:
        apart = scored([[[0.9, 0.9], [0.3, 0.8]]], [[[4, 6], [5, 5]]])
        merged = scored([[[0.9], [0.3, 0.8]]], [[[10], [5, 5]]])
        for mode in ("soft_min", "strict_min"):
            for baseline in ("step_index", "pure_tokens"):
                first, second = (credit(x, mode=mode, baseline=baseline).returns_PKS[0, 0, :1] for x in (apart, merged))
                assert_near(first, second.tolist())

    def test_padding_steps_do_not_count_as_minimum(self) -> None:
        steps = scored([[[0.9], [0.95, 0.8]]])
        assert credit(steps, mode="strict_min", baseline="none").returns_PKS[0, 0, 0].item() == pytest.approx(0.8)

    def test_leave_one_out_by_source_by_hand(self) -> None:
        # R* over steps: −.8/3, 0, 1. The first loses (0 + 1)/2 per step, the second (−.8/3 + 1)/2, the third −.8/6.
        steps = scored([[[0.9, 0.1, 0.8], [0.5], [1.0]]], [[[2, 3, 4], [6], [50]]])
        result = credit(steps, mode="strict_min", baseline="prime_steps")
        expected = [[-0.8 - 1.5, -0.8 - 1.0, 0.6 - 0.5], [-(1 - 0.8 / 3) / 2, 0.0, 0.0], [1 + 0.4 / 3, 0.0, 0.0]]
        assert_near(result.returns_PKS[0], expected)

    def test_low_step_is_punished_not_rewarded(self) -> None:
        assert credit(scored([[[0.1]]]), mode="soft_min", baseline="none").returns_PKS.item() == pytest.approx(-0.8)


class TestReturnToGo:
    @pytest.mark.parametrize(
        ("transform", "eta", "expected"),
        [
            ("none", 0.0, [1.8, 0.9, 0.8]),
            ("clip", 0.5, [-0.4, -0.4, 0.0]),
            ("delta", 0.0, [0.9, 0.1, 0.8]),
        ],
    )
    def test_transforms(self, transform: str, eta: float, expected: list[float]) -> None:
        result = credit(scored(ONE), mode="return_to_go", transform=transform, eta=eta, baseline="none")
        assert_near(result.returns_PKS, [[expected]])

    def test_delta_of_a_shorter_response_ends_with_its_own_last_step(self) -> None:
        steps = scored([[[0.9, 0.4], [0.3, 0.2, 0.7]]])
        result = credit(steps, mode="return_to_go", transform="delta", baseline="none")
        assert_near(result.returns_PKS, [[[0.9, 0.4, 0.0], [0.3, 0.2, 0.7]]])

    def test_clip_does_not_charge_a_shorter_response_for_its_padding(self) -> None:
        steps = scored([[[0.9, 0.4], [0.3, 0.2, 0.7]]])
        result = credit(steps, mode="return_to_go", transform="clip", eta=0.5, baseline="none")
        assert_near(result.returns_PKS, [[[-0.1, -0.1, 0.0], [-0.5, -0.3, 0.0]]])

    def test_steps_normalized_over_the_group_before_the_sum(self) -> None:
        rewards = [0.9, 0.1, 0.8, 0.4, 0.6]
        scale, middle = stdev(rewards), mean(rewards)
        a, b, c, d, e = [(reward - middle) / scale for reward in rewards]
        steps = scored([[[0.9, 0.1, 0.8], [0.4, 0.6]]])
        result = credit(steps, mode="return_to_go", normalize_steps=True, baseline="none")
        assert_near(result.returns_PKS, [[[a + b + c, b + c, c], [d + e, e, 0.0]]], 1e-4)

    def test_token_leave_one_out(self) -> None:
        steps = scored([[[0.9, 0.1], [0.4], [0.6]]], [[[2, 3], [10], [10]]])
        result = credit(steps, mode="return_to_go", baseline="pure_tokens")
        assert_near(result.returns_PKS[0, 0], [1.0 - (1.0 / 20) * 5, 0.1 - (1.0 / 20) * 3])
        assert_near(result.returns_PKS[0, 1, :1], [0.4 - (1.6 / 15) * 10])

    def test_leave_one_out_by_source(self) -> None:
        """As in PRIME, the mean of the others' mean step rewards is subtracted from r_j, then later steps are summed.

        A response without steps and a dropped one do not count among the others.
        """
        steps = scored([[[0.9, 0.1], [0.4], [], [0.7], [0.6]]])
        kept = [[True, True, True, False, True]]
        result = credit(steps, kept=kept, mode="return_to_go", baseline="prime_steps")
        expected = [[0.4 - 0.4, 0.1 - 0.5], [0.4 - 0.55, 0], [0, 0], [0, 0], [0.6 - 0.45, 0]]
        assert_near(result.returns_PKS[0], expected)

    def test_plain_sums_reward_padding_with_harmless_steps_and_delta_does_not(self) -> None:
        short, padded = scored([[[0.9, 0.8]]]), scored([[[0.9, 0.9, 0.9, 0.8]]])
        for transform, gains in (("none", True), ("delta", False)):
            values = {"mode": "return_to_go", "transform": transform, "baseline": "none"}
            gain = credit(padded, **values).returns_PKS[0, 0, 0] - credit(short, **values).returns_PKS[0, 0, 0]
            assert (gain.item() > 0.1) == gains


class TestProgress:
    def test_a_step_earns_what_it_changes_and_the_first_is_compared_with_1(self) -> None:
        steps = scored([[[0.9, 0.1, 0.8], [0.6, 0.7]]])
        result = credit(steps, mode="progress", baseline="none", weight=0.5)
        assert_near(result.returns_PKS, [[[-0.05, -0.4, 0.35], [-0.2, 0.05, 0.0]]])

    def test_only_the_step_with_the_mistake_is_blamed(self) -> None:
        """With value credit, the steps after a mistake are blamed too."""
        steps = scored([[[0.9, 0.1, 0.1], [0.9, 0.9, 0.9]]])
        value = credit(steps, mode="return_to_go", transform="delta")
        assert_near(value.returns_PKS, [[[0.0, -0.8, -0.8], [0.0, 0.8, 0.8]]])
        assert_near(credit(steps, mode="progress").returns_PKS, [[[0.0, -0.8, 0.0], [0.0, 0.8, 0.0]]])


class TestValue:
    STEPS = scored([[[0.9, 0.1, 0.8], [0.6, 0.7]]])

    def test_by_hand(self) -> None:
        # V = (.9, .1, R) and (.6, R) with R = 0, 1: δ = (V_1, −.8, −.1) and (V_1, .4).
        # A_1 = .9 + λ·(−.8 − λ·.1) = .475 and .6 + λ·.4 = .8 with λ = .5, each minus the other.
        result = credit(self.STEPS, rewards=[[0, 1]], mode="value", lam=0.5)
        assert_near(result.returns_PKS, [[[-0.325, -0.85, -0.1], [0.325, 0.4, 0.0]]])

    def test_without_lambda_it_is_the_change_in_value(self) -> None:
        result = credit(self.STEPS, rewards=[[0, 1]], mode="value", lam=0)
        assert_near(result.returns_PKS, [[[0.3, -0.8, -0.1], [-0.3, 0.4, 0.0]]])

    def test_with_lambda_1_scores_are_a_baseline_of_the_outcome(self) -> None:
        result = credit(self.STEPS, rewards=[[0, 1]], mode="value", lam=1)
        assert_near(result.returns_PKS, [[[-1.0, -0.9, -0.1], [1.0, 0.4, 0.0]]])

    def test_the_outcome_takes_the_place_of_the_last_score(self) -> None:
        other = scored([[[0.9, 0.1, 0.1], [0.6, 0.0]]])
        for lam in (0.0, 0.8, 1.0):
            results = [credit(steps, rewards=[[0, 1]], mode="value", lam=lam) for steps in (self.STEPS, other)]
            torch.testing.assert_close(results[0].returns_PKS, results[1].returns_PKS)

    def test_rewards_and_values_have_the_same_scale(self) -> None:
        one = credit(self.STEPS, rewards=[[0, 1]], mode="value", lam=0.5)
        half = credit(self.STEPS, rewards=[[0, 0.5]], scale=0.5, mode="value", lam=0.5)
        torch.testing.assert_close(half.returns_PKS, 0.5 * one.returns_PKS)

    def test_a_response_without_steps_is_compared_by_its_outcome(self) -> None:
        """With λ = 1, the first step has the advantage of RLOO, whether the others have steps or not."""
        steps = scored([[[0.9, 0.1], [], [0.6, 0.7], [0.3]]])
        result = credit(steps, kept=[[True, True, True, False]], rewards=[[1, 0, 1, 1]], mode="value")
        assert_near(result.returns_PKS, [[[0.5, 0.1], [0.0, 0.0], [0.5, 0.4], [0.0, 0.0]]])
        assert result.missing_PK.tolist() == [[False, True, False, False]]
        alone = credit(scored([[[0.9, 0.1], []]]), rewards=[[1, 0]], mode="value")
        assert_near(alone.returns_PKS, [[[1.0, 0.1], [0.0, 0.0]]])

    def test_responses_of_one_step_have_the_advantage_of_rloo(self) -> None:
        result = credit(scored([[[0.9], [0.2], [0.4]]]), rewards=[[1, 0, 0]], mode="value")
        assert_near(result.returns_PKS[..., 0], [[1.0, -0.5, -0.5]])

    @pytest.mark.parametrize("groups", [1, 2])
    def test_with_lambda_1_the_gradient_is_that_of_the_expected_reward_for_any_scores(self, groups: int) -> None:
        """All groups of two responses of a policy with two steps of two choices each are enumerated.

        With two groups, the values are calibrated.
        """
        torch.manual_seed(0)
        rewards, scores = torch.rand(2, 2).double(), torch.rand(2).double()

        def gradient(lam: float | None) -> Tensor:
            logits = torch.tensor([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.2]], dtype=torch.float64, requires_grad=True)
            logs = logits.log_softmax(-1)
            found = {(a, b): (logs[0, a], logs[1 + a, b]) for a in (0, 1) for b in (0, 1)}
            total = torch.zeros((), dtype=torch.float64)
            for drawn in itertools.product(found, repeat=2 * groups):
                chance = sum(log for each in drawn for log in found[each]).exp()
                if lam is None:
                    total = total + chance * sum(rewards[each] for each in drawn)
                    continue
                pairs = [drawn[begin : begin + 2] for begin in range(0, len(drawn), 2)]
                steps = scored([[[scores[each[0]].item(), 0.0] for each in pair] for pair in pairs])
                outcomes = [[rewards[each].item() for each in pair] for pair in pairs]
                credits = credit(steps, rewards=outcomes, mode="value", lam=lam).returns_PKS.flatten(0, 1)
                logs_of = torch.stack([torch.stack(found[each]) for each in drawn])
                total = total + chance.detach() * (credits * logs_of).sum()
            total.backward()
            return logits.grad

        torch.testing.assert_close(gradient(1.0), gradient(None))
        assert (gradient(0.0) - gradient(None)).abs().max() > 0.01


class TestCalibration:
    """The value of a step is a·p + b, fitted to the other groups."""

    STEPS = scored([[[0.4, 0.9], [0.8, 0.9]], [[0.2, 0.9], [0.6, 0.9]], [[0.5], []]])

    def test_by_hand(self) -> None:
        """For the first group: R = 0, 1 at p = .2, .6, so a = 2.5 and b = −.5. The values of .4 and .8 are .5 and
        1.5, which is clamped to 1.

        For the second: R = 1, 0 at p = .4, .8, where a = −2.5 would be negative: the values are the mean, .5. The only
        step of the third is its last one, whose value is its outcome.
        """
        rewards = [[1, 0], [0, 1], [1, 0]]
        result = credit(self.STEPS, rewards=rewards, mode="value", lam=1)
        # A_1 is RLOO's advantage, and A_2 = R − V_1.
        expected = [[[1.0, 0.5], [-1.0, -1.0]], [[-1.0, -0.5], [1.0, 0.5]], [[1.0, 0.0], [0.0, 0.0]]]
        assert_near(result.returns_PKS, expected)

    def test_scores_of_any_scale_have_the_same_values(self) -> None:
        torch.manual_seed(0)
        rewards = (torch.rand(4, 3) < 0.5).int().tolist()
        scores = torch.rand(4, 3, 5, dtype=torch.float64)
        plain, scaled = (
            credit(scored(each.tolist()), rewards=rewards, mode="value", lam=0.7) for each in (scores, 0.2 + scores / 9)
        )
        torch.testing.assert_close(plain.returns_PKS, scaled.returns_PKS)

    def test_a_group_does_not_see_its_own_outcomes(self) -> None:
        """The values of the first group's steps are the same whatever its outcomes are; so A_2 changes with R only."""
        found = [credit(self.STEPS, rewards=[own, [0, 1], [1, 0]], mode="value", lam=1) for own in ([1, 0], [0, 0])]
        difference_K = found[0].returns_PKS[0, :, 1] - found[1].returns_PKS[0, :, 1]
        assert_near(difference_K, [1.0, 0.0])

    def test_nearly_equal_scores_of_the_others_do_not_make_large_values(self) -> None:
        for nearly in (1e-5, 1e-3):
            steps = scored([[[0.9, 0.1], [0.1, 0.1]], [[0.5 + nearly, 0.1], [0.5 - nearly, 0.1]]])
            result = credit(steps, rewards=[[0, 0], [1, 0]], mode="value", lam=1)
            values_K = -result.returns_PKS[0, :, 1]
            assert ((values_K >= 0) & (values_K <= 1)).all()

    def test_equal_scores_and_a_single_group(self) -> None:
        steps = scored([[[0.7, 0.1]], [[0.7, 0.1]], [[0.7, 0.1]]])
        result = credit(steps, rewards=[[1], [0], [1]], mode="value")
        assert_near(result.returns_PKS[..., 1], [[0.5], [-1.0], [0.5]])
        single = credit(scored([[[0.7, 0.1], [0.2, 0.1]]]), rewards=[[1, 0]], mode="value")
        assert_near(single.returns_PKS[..., 1], [[0.3, -0.2]])

    def test_it_can_be_turned_off(self) -> None:
        result = credit(self.STEPS, rewards=[[1, 0], [0, 1], [1, 0]], mode="value", calibrate=False)
        assert_near(result.returns_PKS[:2, :, 1], [[0.6, -0.8], [-0.2, 0.4]])


class TestScalar:
    def test_aggregate_is_added_to_the_outcome(self) -> None:
        result = credit(scored([[[0.9, 0.1, 0.8], [0.5]]]), mode="scalar", weight=0.5)
        (source,) = result.sources
        assert_near(source.rewards_PK, [[0.1, 0.5]])
        outcome = Source.of(torch.tensor([[1.0, 0.0]]).double())
        advantages_PK, kept_PK = combine([outcome, source], ESTIMATORS["rloo"], per_source=False)
        assert_near(advantages_PK, [[0.8, -0.8]])
        assert kept_PK.all()

    def test_each_source_normalized_on_its_own(self) -> None:
        outcome = Source.of(torch.tensor([[1.0, 1.0, 0.0, 0.0]]).double())
        process = Source.of(torch.tensor([[0.01, 0.0, 0.01, 0.0]]).double())
        apart, _ = combine([outcome, process], ESTIMATORS["grpo"], per_source=True)
        assert_near(apart, [[3**0.5, 0.0, 0.0, -(3**0.5)]], 1e-3)
        together, _ = combine([outcome, process], ESTIMATORS["grpo"], per_source=False)
        assert together[0, 2].item() < -0.8
        # Leave-one-out is linear, so separate and summed sources give the same result.
        rloo = ESTIMATORS["rloo"]
        first, second = (combine([outcome, process], rloo, per_source=apart)[0] for apart in (True, False))
        torch.testing.assert_close(first, second)

    @pytest.mark.parametrize("per_source", [True, False])
    def test_the_weight_survives_division_by_a_standard_deviation(self, per_source: bool) -> None:
        """With separate sources, a pair's process advantages of ±1/√2 times the weight are added to the outcome's 0.
        With the sum of both, normalization cancels the weight.
        """
        outcome = Source.of(torch.zeros(1, 2).double())
        for weight in (0.01, 1.0, 100.0):
            (source,) = credit(scored([[[0.9], [0.1]]]), mode="scalar", weight=weight).sources
            advantages_PK, _ = combine([outcome, source], ESTIMATORS["grpo"], per_source=per_source)
            expected = 0.5**0.5 * (weight if per_source else 1.0)
            assert_near(advantages_PK, [[expected, -expected]], 1e-3 * expected)

    def test_gate_normalizes_among_correct_answers_only(self) -> None:
        steps = scored([[[0.9], [0.5], [0.1], [0.3]]])
        correct = [[True, True, False, False]]
        (source,) = credit(steps, correct=correct, mode="scalar", gate="correct").sources
        outcome = Source.of(torch.tensor([[1.0, 1.0, 0.0, 0.0]]).double())
        apart, _ = combine([outcome, source], ESTIMATORS["rloo"], per_source=True)
        assert_near(apart, [[2 / 3 + 0.4, 2 / 3 - 0.4, -2 / 3, -2 / 3]])
        together, kept_PK = combine([outcome, source], ESTIMATORS["rloo"], per_source=False)
        # Sums 1.9, 1.5, 0, 0: the incorrect ones stay in the group, without process reward.
        assert_near(together, [[(4 * 1.9 - 3.4) / 3, (4 * 1.5 - 3.4) / 3, -3.4 / 3, -3.4 / 3]])
        assert kept_PK.all()

    def test_response_without_steps_is_dropped_from_a_sum_and_not_given_0(self) -> None:
        result = credit(scored([[[0.9], [], [0.1]]]), mode="scalar")
        assert result.missing_PK.tolist() == [[False, True, False]]
        outcome = Source.of(torch.ones(1, 3).double())
        advantages_PK, kept_PK = combine([outcome, *result.sources], ESTIMATORS["rloo"], per_source=False)
        assert_near(advantages_PK, [[0.8, 0.0, -0.8]])
        assert kept_PK.tolist() == [[True, False, True]]
        apart_PK, kept_PK = combine([outcome, *result.sources], ESTIMATORS["rloo"], per_source=True)
        assert_near(apart_PK, [[0.8, 0.0, -0.8]])
        assert kept_PK.all()


class TestStepGae:
    def test_rewards_are_at_the_last_token_of_each_step(self) -> None:
        result = credit(scored(ONE), mode="step_gae", weight=0.5)
        assert (result.returns_PKS == 0).all()
        assert not result.sources
        step_of_NT = torch.tensor([[-1, 0, 0, 1, 2, 2, 2, -1]])
        rewards_NT = scatter_to_tokens(result.rewards_PKS.flatten(0, 1), step_of_NT)
        assert_near(rewards_NT, [[0, 0, 0.45, 0.05, 0, 0, 0.4, 0]])


class TestParticipation:
    @pytest.mark.parametrize("mode", ["soft_min", "strict_min", "progress", "return_to_go"])
    def test_dropped_samples_and_those_without_steps_are_not_in_the_baseline(self, mode: str) -> None:
        full = scored([[[0.9, 0.2], [0.4], [0.7, 0.6]]])
        wide = scored([[[0.9, 0.2], [0.1], [0.4], [], [0.7, 0.6]]])
        expected = credit(full, mode=mode)
        result = credit(wide, kept=[[True, False, True, True, True]], mode=mode)
        assert_near(result.returns_PKS[:, [0, 2, 4]], expected.returns_PKS.tolist())
        assert (result.returns_PKS[:, [1, 3]] == 0).all()
        assert result.scored_PK.tolist() == [[True, False, True, False, True]]
        assert result.missing_PK.tolist() == [[False, False, False, True, False]]

    def test_a_lone_scored_sample_has_no_baseline_and_is_left_out(self) -> None:
        steps = scored([[[0.9], []], [[0.9], [0.2]]])
        result = credit(steps)
        assert result.scored_PK.tolist() == [[False, False], [True, True]]
        assert result.alone_PK.tolist() == [[True, False], [False, False]]
        assert (result.returns_PKS[0] == 0).all()
        for baseline in ("pure_tokens", "prime_steps"):
            other = credit(steps, baseline=baseline)
            assert other.alone_PK.tolist() == result.alone_PK.tolist()
            assert (other.returns_PKS[0] == 0).all()
        plain = credit(steps, baseline="none")
        assert plain.scored_PK.tolist() == [[True, False], [True, True]]
        assert not plain.alone_PK.any()

    @pytest.mark.parametrize("mode", ["soft_min", "strict_min", "progress", "return_to_go"])
    def test_gate_gives_process_credit_to_correct_answers_only(self, mode: str) -> None:
        steps = scored([[[0.9, 0.2], [0.1], [0.4]]])
        result = credit(steps, correct=[[True, False, True]], mode=mode, gate="correct")
        alone = credit(scored([[[0.9, 0.2], [0.4]]]), mode=mode)
        assert_near(result.returns_PKS[:, [0, 2]], alone.returns_PKS.tolist())
        assert (result.returns_PKS[0, 1] == 0).all()
        assert not result.missing_PK.any()

    @pytest.mark.parametrize("mode", MODES)
    def test_order_padding_and_junk_change_nothing(self, mode: str) -> None:
        torch.manual_seed(0)
        mask_PKS = torch.arange(4) < torch.randint(0, 5, (3, 5, 1))
        steps = ScoredSteps(torch.rand(3, 5, 4).double(), torch.randint(1, 9, (3, 5, 4)), mask_PKS)
        kept_PK, correct_PK = torch.rand(3, 5) > 0.2, torch.rand(3, 5) > 0.3
        config = CreditConfig(mode=mode, **({} if mode == "value" else {"gate": "correct", "weight": 0.7}))

        def flat(steps: ScoredSteps, kept_PK: Tensor, correct_PK: Tensor) -> list[Tensor]:
            result = assign(steps, kept_PK, correct_PK, config, min, Outcomes(correct_PK.double(), kept_PK, 0.7, 0.8))
            return [result.returns_PKS, result.rewards_PKS, *(source.rewards_PK for source in result.sources)]

        whole = flat(steps, kept_PK, correct_PK)
        rows, columns = torch.randperm(3), torch.randperm(5)
        moved = [tensor[rows][:, columns] for tensor in (steps.scores_PKS, steps.tokens_PKS, mask_PKS)]
        for before, after in zip(
            whole, flat(ScoredSteps(*moved), kept_PK[rows][:, columns], correct_PK[rows][:, columns]), strict=True
        ):
            torch.testing.assert_close(after, before[rows][:, columns])
        wide = ScoredSteps(
            torch.cat([torch.where(mask_PKS, steps.scores_PKS, torch.nan), torch.full((3, 5, 2), -7.0)], dim=2),
            torch.cat([torch.where(mask_PKS, steps.tokens_PKS, 99), torch.full((3, 5, 2), 50)], dim=2),
            torch.cat([mask_PKS, torch.zeros(3, 5, 2) > 0], dim=2),
        )
        for before, after in zip(whole, flat(wide, kept_PK, correct_PK), strict=True):
            padded = after[..., :4] if after.dim() == 3 else after
            torch.testing.assert_close(padded, before)
            assert after.isfinite().all()
        assert any(tensor.abs().sum() > 0 for tensor in whole)

    @pytest.mark.parametrize("mode", MODES)
    def test_a_batch_without_any_step_is_all_missing(self, mode: str) -> None:
        result = credit(scored([[[], []], [[], []]]), kept=[[True, True], [True, False]], mode=mode)
        assert result.missing_PK.tolist() == [[True, True], [True, False]]
        assert not result.scored_PK.any()
        step_of_NT = torch.full((4, 3), -1)
        assert spread(result.returns_PKS.flatten(0, 1), step_of_NT).tolist() == [[0.0] * 3] * 4
        assert scatter_to_tokens(result.rewards_PKS.flatten(0, 1), step_of_NT).tolist() == [[0.0] * 3] * 4

    @pytest.mark.parametrize("mode", sorted(MODES.keys() - {"value"}))
    def test_weight_scales(self, mode: str) -> None:
        steps = scored([[[0.9, 0.2], [0.4]]])
        one, three = credit(steps, mode=mode), credit(steps, mode=mode, weight=3.0)
        torch.testing.assert_close(three.returns_PKS, 3 * one.returns_PKS)
        torch.testing.assert_close(three.rewards_PKS, 3 * one.rewards_PKS)
        for large, small in zip(three.sources, one.sources, strict=True):
            assert large.weight == 3 * small.weight
            torch.testing.assert_close(large.rewards_PK, small.rewards_PK)


class TestTokens:
    STEP_OF = torch.tensor([[-1, 0, 0, 1, 1, 1, -1], [0, 1, 2, -1, -1, -1, -1]])

    def test_spread(self) -> None:
        values_NS = torch.tensor([[5.0, 7.0, 9.0], [1.0, 2.0, 3.0]])
        assert spread(values_NS, self.STEP_OF).tolist() == [[0, 5, 5, 7, 7, 7, 0], [1, 2, 3, 0, 0, 0, 0]]

    def test_place(self) -> None:
        values_NS = torch.tensor([[5.0, 7.0, 9.0], [1.0, 2.0, 3.0]])
        assert scatter_to_tokens(values_NS, self.STEP_OF).tolist() == [[0, 0, 5, 0, 0, 7, 0], [1, 2, 3, 0, 0, 0, 0]]

    def test_place_at_the_last_column(self) -> None:
        assert scatter_to_tokens(torch.tensor([[5.0]]), torch.tensor([[0, 0]])).tolist() == [[0, 5]]

    def test_count(self) -> None:
        assert count_tokens(self.STEP_OF, 3).tolist() == [[2, 3, 0], [1, 1, 1]]


def test_scalar_without_an_aggregator_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="aggregat"):
        credit(scored(ONE), mode="scalar", aggregate=None)
