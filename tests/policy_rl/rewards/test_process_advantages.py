"""Test the whole path from step scores to token advantages, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted_prm import PROBLEM, Scripted, sampled, scored

from mmprm.config import build
from mmprm.types import Grading, Verdict
from policy_rl.algorithms.advantages import ESTIMATORS, AdvantageConfig
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards
from policy_rl.types import Reward, TrainingSample
from tests.policy_rl.byte_tokenizers import byte_level

# From text and token ids to advantages N×T: three steps of 2, 3 and 4 tokens, of a byte-level policy.
TEXT = "\n\n".join(("a", "bc", "defg"))

P = {"a": 0.9, "bc": 0.1, "defg": 0.8}

TOKENS = [3, 4, 5]


def batch(
    texts: Sequence[Sequence[str]], scores: dict[str, float], rewards: Sequence[Sequence[float | None]] | None = None
) -> list[GradedGroup]:
    """Return groups whose responses are actually split and scored; a reward above 0 means a correct answer."""
    tokenizer, groups = byte_level(), []
    for p, row in enumerate(texts):
        responses = [sampled(tokenizer, text) for text in row]
        found, _ = scored(responses, Scripted(scores), tokenizer, "blank_lines")
        totals = rewards[p] if rewards else [0.0] * len(row)
        graded = tuple(
            GradedResponse(response, Grading(_verdict(total), None, ""), Reward(total, {"accuracy": total}), process)
            for response, total, process in zip(responses, totals, found, strict=True)
        )
        groups.append(GradedGroup(PROBLEM, 5, 0, graded))
    return groups


def _verdict(total: float | None) -> Verdict:
    return Verdict.UNKNOWN if total is None else Verdict.CORRECT if total > 0 else Verdict.INCORRECT


def advantages(groups: Sequence[GradedGroup], estimator: str = "rloo", aggregate=min, **credit) -> list[list[float]]:
    """Return one list per kept sample with the advantage of each of its tokens."""
    kept_PK = kept_mask(groups, ESTIMATORS[estimator].least)
    drafts = draft(groups, kept_PK)
    if ESTIMATORS[estimator].critic:
        drafts = [with_values(each) for each in drafts]
    config = AdvantageConfig(estimator=estimator, whiten=False)
    settings = AdvantageSettings(config, build(CreditConfig, credit) if credit else None, aggregate=aggregate)
    made, _ = add_advantages(groups, kept_PK, drafts, settings)
    return [each.advantages.tolist() for each in made]


def with_values(sample: TrainingSample) -> TrainingSample:
    return replace(sample, values=torch.zeros(len(sample.token_ids)).numpy())


def steps_of(values: Sequence[float], lengths: Sequence[int] = TOKENS) -> list[float]:
    """Return each value for each token of its step, with the end of turn in the last step."""
    return [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]


class TestStepScoresToTokens:
    @pytest.mark.parametrize(
        ("credit", "expected"),
        [
            ({"mode": "strict_min"}, [-0.8, -0.8, 0.6]),
            ({"mode": "soft_min"}, [-0.8, -0.8, 0.0]),
            ({"mode": "progress"}, [-0.1, -0.8, 0.7]),
            ({"mode": "return_to_go"}, [1.8, 0.9, 0.8]),
            ({"mode": "return_to_go", "transform": "clip", "eta": 0.5}, [-0.4, -0.4, 0.0]),
            ({"mode": "return_to_go", "transform": "delta"}, [0.9, 0.1, 0.8]),
        ],
    )
    def test_worked_numbers(self, credit: dict, expected: list[float]) -> None:
        groups = batch([[TEXT, "h"]], P | {"h": 0.5})
        first, second = advantages(groups, baseline="none", **credit)
        assert first == pytest.approx(steps_of(expected), abs=1e-5)
        assert len(second) == 2

    def test_token_baseline_on_tokens(self) -> None:
        # Strict form: R* −.8 over 12 tokens, and .6 over 6 ("hhhhh" and the end of turn).
        groups = batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8})
        first, second = advantages(groups, mode="strict_min", baseline="pure_tokens")
        rate = 0.6 / 6
        assert first == pytest.approx(steps_of([-0.8 - 12 * rate, -0.8 - 9 * rate, 0.6 - 5 * rate]), abs=1e-6)
        assert second == pytest.approx([0.6 + 6 * 0.8 / 12] * 6, abs=1e-6)

    def test_the_default_baseline_on_tokens(self) -> None:
        # Strict form (−.8, −.8, .6) and (.6): each minus the other's first step; there are no other later steps.
        groups = batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8})
        first, second = advantages(groups, mode="strict_min")
        assert first == pytest.approx(steps_of([-1.4, 0.0, 0.0]), abs=1e-6)
        assert second == pytest.approx([1.4] * 6, abs=1e-6)

    def test_outcome_and_process_add_up(self) -> None:
        groups = batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8}, rewards=[[1.0, 0.0]])
        outcome_only = advantages(groups)
        assert outcome_only == [pytest.approx([1.0] * 12), pytest.approx([-1.0] * 6)]
        process = advantages(batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8}), mode="soft_min")
        both = advantages(groups, mode="soft_min")
        for row, ones, added in zip(both, outcome_only, process, strict=True):
            assert row == pytest.approx([one + more for one, more in zip(ones, added, strict=True)], abs=1e-6)

    def test_scalar_by_source(self) -> None:
        scores = P | {"h": 0.5, "i": 0.3}
        groups = batch([[TEXT, "h", "i"]], scores, rewards=[[1.0, 0.0, 0.0]])
        rows = advantages(groups, estimator="grpo", mode="scalar", per_source=True)
        # Outcome (1, 0, 0): (2/3, −1/3, −1/3) / 0.57735. Lowest scores (.1, .5, .3): (−.2, .2, 0) / .2.
        expected = [1.154701 - 1, -0.577350 + 1, -0.577350]
        assert [row[0] for row in rows] == pytest.approx(expected, abs=1e-4)
        assert all(len(set(row)) == 1 for row in rows)
        together = advantages(groups, estimator="rloo", mode="scalar")
        # Sums (1.1, .5, .3)
        assert [row[0] for row in together] == pytest.approx([1.1 - 0.4, 0.5 - 0.7, 0.3 - 0.8], abs=1e-6)

    def test_step_gae(self) -> None:
        groups = batch([[TEXT]], P, rewards=[[1.0]])
        (row,) = advantages(groups, estimator="gae", mode="step_gae")
        # Without values and with γ = λ = 1: the sum of the remaining rewards, with the outcome at the end of turn.
        assert row == pytest.approx(steps_of([0.9 + 0.1 + 0.8 + 1, 0.1 + 0.8 + 1, 0.8 + 1]), abs=1e-6)

    def test_values_replace_the_outcome_of_scored_responses(self) -> None:
        # "\n\n?" has no steps, so it keeps the outcome's advantage: 0 minus the mean of 1 and 0.
        groups = batch([[TEXT, "hhhhh", "\n\n?"]], P | {"hhhhh": 0.8}, rewards=[[1.0, 0.0, 0.0]])
        first, second, third = advantages(groups, mode="value")
        assert first == pytest.approx(steps_of([1.0, 1 - 0.9, 1 - 0.1]), abs=1e-6)
        assert second == pytest.approx([-0.5] * 6, abs=1e-6)
        assert third == pytest.approx([-0.5] * len(third), abs=1e-6)

    def test_other_rewards_keep_the_advantage_of_the_response(self) -> None:
        groups = batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8}, rewards=[[1.0, 0.0]])
        expected = advantages(groups, mode="value")
        first, second = groups[0].responses
        second = replace(second, reward=Reward(0.5, {"accuracy": 0.0, "format": 0.5}))
        found = advantages([replace(groups[0], responses=(first, second))], mode="value")
        assert found[0] == pytest.approx([value - 0.5 for value in expected[0]])
        assert found[1] == pytest.approx([value + 0.5 for value in expected[1]])

    def test_the_rest_of_a_response_that_is_scored_in_part_is_one_step(self) -> None:
        text = "\n\n".join(("a", "bc", "defg", "h"))
        groups = batch([[text, "hhhhh"]], P | {"h": 0.2, "hhhhh": 0.8}, rewards=[[1.0, 0.0]])
        first, second = groups[0].responses
        for known, expected in ((3, [1.0, 0.1, 0.9, 0.2]), (1, [1.0, 0.1, 0.1, 0.1]), (0, [1.0] * 4)):
            step_of_token = np.where(first.process.step_of_token < known, first.process.step_of_token, -1)
            part = replace(first, process=StepRewards(first.process.scores[:known], step_of_token))
            rows = advantages([replace(groups[0], responses=(part, second))], mode="value")
            assert rows[0] == pytest.approx(steps_of(expected, [3, 4, 6, 2]), abs=1e-6)
            assert rows[1] == pytest.approx([-1.0] * 6, abs=1e-6)

    def test_gate(self) -> None:
        texts = [[TEXT, "hhhhh", "ii"]]
        scores = P | {"hhhhh": 0.8, "ii": 0.9}
        rows = advantages(batch(texts, scores, rewards=[[1.0, 1.0, 0.0]]), mode="soft_min", gate="correct")
        ungated = advantages(batch([texts[0][:2]], scores), mode="soft_min")
        outcome = [0.5, 0.5, -1.0]
        for row, process, base in zip(rows[:2], ungated, outcome[:2], strict=True):
            assert row == pytest.approx([base + value for value in process], abs=1e-6)
        assert rows[2] == pytest.approx([-1.0] * 3)

    @pytest.mark.parametrize("mode", ["soft_min", "strict_min"])
    def test_merging_two_steps_earns_nothing(self, mode: str) -> None:
        """Two steps with equal scores are as long as the step that replaces them, and the first token earns the
        same.
        """
        scores = {"aaaa": 0.9, "bb": 0.9, "bbbbbbbb": 0.9, "cc": 0.3, "dd": 0.7}
        other = "cc\n\ndd"
        for baseline in ("step_index", "pure_tokens"):
            values = {"mode": mode, "baseline": baseline}
            apart = advantages(batch([["aaaa\n\nbb", other]], scores), **values)
            merged = advantages(batch([["bbbbbbbb", other]], scores), **values)
            assert len(apart[0]) == len(merged[0]) == 9
            assert apart[0][0] == pytest.approx(merged[0][0], abs=1e-6)
            assert apart[1][0] == pytest.approx(merged[1][0], abs=1e-6)

    def test_without_the_baseline_plain_sums_do_reward_more_steps(self) -> None:
        scores = {"aaaa": 0.9, "bb": 0.9, "bbbbbbbb": 0.9, "cc": 0.3}
        settings = {"mode": "return_to_go", "baseline": "none"}
        apart = advantages(batch([["aaaa\n\nbb", "cc"]], scores), **settings)
        merged = advantages(batch([["bbbbbbbb", "cc"]], scores), **settings)
        assert apart[0][0] == pytest.approx(merged[0][0] + 0.9, abs=1e-6)

    @pytest.mark.parametrize("mode", ["scalar", "return_to_go", "soft_min", "strict_min"])
    def test_order_and_longer_responses_change_nothing(self, mode: str) -> None:
        scores = P | {"h": 0.5, "ii": 0.3, "jjj": 0.7, "k" * 40: 0.2}
        texts = [[TEXT, "h", "ii\n\njjj"], ["jjj", "h\n\nii"]]
        rewards = [[1.0, 0.0, 0.0], [1.0, 0.0]]
        whole = advantages(batch(texts, scores, rewards), mode=mode)
        turned = advantages(
            batch([row[::-1] for row in texts[::-1]], scores, [row[::-1] for row in rewards[::-1]]), mode=mode
        )
        expected = [*whole[:3][::-1], *whole[3:][::-1]]
        for row, other in zip([*turned[2:], *turned[:2]], expected, strict=True):
            assert row == pytest.approx(other, abs=1e-6)
        longer = [*texts, ["k" * 40, "k" * 40 + "\n\n" + "k" * 40, "h", "h"]]
        wide = advantages(batch(longer, scores, [*rewards, [1.0, 0.0, 0.0, 1.0]]), mode=mode)
        for row, other in zip(wide[:5], whole, strict=True):
            assert row == pytest.approx(other, abs=1e-6)

    def test_no_steps_means_outcome_alone_and_no_zero_for_the_others(self) -> None:
        scores = P | {"hhhhh": 0.8}
        with_it = batch([[TEXT, "hhhhh", "\n\n?"]], scores, rewards=[[1.0, 0.0, 0.0]])
        assert with_it[0].responses[2].process is None
        rows = advantages(with_it, mode="soft_min")
        assert rows[2] == pytest.approx([-0.5] * len(rows[2]))
        without = advantages(batch([[TEXT, "hhhhh"]], scores), mode="soft_min")
        for row, process, outcome in zip(rows[:2], without, [1.0, -0.5], strict=True):
            assert row == pytest.approx([outcome + value for value in process], abs=1e-6)
