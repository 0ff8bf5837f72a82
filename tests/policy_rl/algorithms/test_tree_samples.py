"""Test the training samples of groups whose responses branch: tokens, masks, advantages, and their scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmprm.backbone.token_tree import token_tree
from mmprm.types import Grading, Problem, Verdict
from policy_rl.algorithms.advantages import AdvantageConfig
from policy_rl.algorithms.losses import LossConfig, policy_loss
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.algorithms.tree_samples import TreeSettings, add_tree_advantages, draft_continuations
from policy_rl.graded import BranchedPrefix, GradedGroup, GradedResponse
from policy_rl.metrics import describe_branches
from policy_rl.trainer.batch import loss_denominator
from policy_rl.types import Response, Reward, TrainingSample
from tests.policy_rl.corridor import played_response

SETTINGS = TreeSettings(AdvantageConfig())


def graded(ids: Sequence[int], reward: float | None, finish_reason: str = "stop") -> GradedResponse:
    response = Response("", ids, [-0.5] * len(ids), finish_reason)
    return GradedResponse(response, Grading(Verdict.UNKNOWN, None, ""), Reward(reward, {"accuracy": reward}))


def group() -> GradedGroup:
    """Return responses 1 2 3 4 (correct) and 9 8 (incorrect).

    The first is continued after 1 2, where the PRM score is ½, by an unknown, an incorrect and a correct continuation.
    """
    continuations = (graded([1, 2, 7], None), graded([1, 2, 5, 6, 7], 0.0), graded([1, 2, 5], 1.0))
    branches = (BranchedPrefix(0, 2, 0.5, continuations),)
    return GradedGroup(Problem("p", "?", "1"), 5, 0, (graded([1, 2, 3, 4], 1.0), graded([9, 8], 0.0)), branches)


def made(groups: Sequence[GradedGroup], settings: TreeSettings = SETTINGS, **arrays) -> list[TrainingSample]:
    kept_PK = kept_mask(groups, 2)
    samples = draft(groups, kept_PK) + (draft_continuations(groups, kept_PK) if settings.train else [])
    samples = [replace(each, **{k: v(each) for k, v in arrays.items()}) for each in samples]
    return add_tree_advantages(groups, kept_PK, samples, settings)[0]


def test_continuations_repeat_the_tokens_of_their_prefix_masked() -> None:
    samples = made([group()])
    assert [each.token_ids.tolist() for each in samples[2:]] == [[1, 2, 5, 6, 7], [1, 2, 5]]
    assert [each.counted.tolist() for each in samples[2:]] == [[False] * 2 + [True] * 3, [False] * 2 + [True]]
    # 1 2 is computed once, and so is the 5 of both continuations: 1 2 3 4, 9 8, 5 6 7.
    assert len(token_tree([each.token_ids for each in samples])) == 9
    assert {each.group for each in samples} == {0}


def test_continuations_of_an_episode_train_on_their_own_actions_only() -> None:
    """An episode of two turns (tokens 10 11, observation 12, tokens 13 14) is continued after the first one."""
    trunk, other = played_response(("a", "b"), (0, 0), 0.0), played_response(("a",), (1,), 1.0)
    longer = played_response(("a", "b", "c"), (0, 0, 1), 1.0)
    episodes = GradedGroup(Problem("p", "?", ""), 1, 0, (trunk, other), (BranchedPrefix(0, 2, None, (longer,)),))
    first, second, continued = made([episodes])
    assert continued.counted.tolist() == [False] * 3 + [True] * 2 + [False] + [True] * 2
    assert continued.rows == longer.response.played.rows
    # V of the first turn is 1/2; its advantage -1/2 has weight 1. After it, -1 and 1 have weight 1/2.
    # Counted tokens 4 + 2 + 4 = 10; their weights 2 + 2/2 + 2 + 4/2 = 7.
    scale = 10 / 7
    assert (first.advantages * first.counted).tolist() == pytest.approx([-0.5 * scale] * 2 + [0] + [-0.5 * scale] * 2)
    assert second.advantages.tolist() == pytest.approx([0.5 * scale] * 2)
    assert continued.advantages[continued.counted].tolist() == pytest.approx([0.5 * scale] * 4)


def test_advantages_with_their_weights() -> None:
    # Known children of 1 2: 1, 0, 1, so V = 2/3. After it, the weight is 1/3 and the baseline the mean of the others.
    # Tokens 4 + 2 + 3 + 1 = 10; their weights 2 + 2/3 + 2 + 1 + 1/3 = 6.
    first, second, wrong, right = (each.advantages.tolist() for each in made([group()]))
    scale = 10 / 6
    assert first == pytest.approx([2 / 3 * scale] * 2 + [0.5 / 3 * scale] * 2)
    assert second == pytest.approx([-2 / 3 * scale] * 2)
    assert wrong == pytest.approx([0, 0] + [-1 / 3 * scale] * 3)
    assert right == pytest.approx([0, 0, 0.5 / 3 * scale])


def test_the_loss_is_the_weighted_mean_over_tokens() -> None:
    samples, config = made([group()]), LossConfig()
    losses = []
    for each in samples:
        lp_1T = torch.zeros(1, len(each.token_ids), requires_grad=True)
        mask_1T = torch.from_numpy(np.array(each.counted))[None]
        advantages_1T = torch.from_numpy(each.advantages)[None]
        size = loss_denominator(samples, config)
        losses.append(policy_loss(lp_1T, torch.zeros_like(lp_1T), advantages_1T, mask_1T, size, config)[0].item())
    # −Σ w·A / Σ w over the four samples, with Σ w = 6.
    expected = [2 * 2 / 3 + 2 * 0.5 / 3, -2 * 2 / 3, -3 / 3, 0.5 / 3]
    assert losses == pytest.approx([-each / 6 for each in expected], abs=1e-6)


def test_without_training_on_continuations_tokens_keep_weight_one() -> None:
    first, second = (each.advantages.tolist() for each in made([group()], replace(SETTINGS, train=False)))
    assert first == pytest.approx([2 / 3, 2 / 3, 0.5, 0.5])
    assert second == pytest.approx([-2 / 3, -2 / 3])


def test_without_branches_it_is_rloo() -> None:
    plain = [replace(group(), branches=()), replace(group(), branches=())]
    kept_PK = kept_mask(plain, 2)
    rloo, metrics = add_advantages(plain, kept_PK, draft(plain, kept_PK), AdvantageSettings(AdvantageConfig()))
    for one, other in zip(made(plain), rloo, strict=True):
        assert one.advantages.tolist() == pytest.approx(other.advantages.tolist())
    assert add_tree_advantages(plain, kept_PK, draft(plain, kept_PK), SETTINGS)[1] == pytest.approx(metrics)


def test_a_score_is_a_prior_in_units_of_the_reward() -> None:
    # κ = 2, p = 3·½: V = (1 + 0 + 1 + 2·1.5) / 5 = 1, and the rest of the response 1 − (0 + 1 + 3) / 4 = 0.
    settings = replace(SETTINGS, prior_weight=2.0, prior_scale=3.0, train=False)
    assert made([group()], settings)[0].advantages.tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_dropped_responses_and_their_branches_are_left_out() -> None:
    whole = group()
    dropped = replace(whole, responses=(graded([1, 2, 3, 4], None), *whole.responses[1:], graded([6], 1.0)))
    assert [each.token_ids.tolist() for each in made([dropped])] == [[9, 8], [6]]


def test_truncated_continuations_count_only_in_values() -> None:
    branch = group().branches[0]
    cut = replace(branch, continuations=(*branch.continuations[:2], graded([1, 2, 5], 1.0, "length")))
    samples = made([replace(group(), branches=(cut,))], replace(SETTINGS, mask_truncated=True))
    assert len(samples) == 3
    # Tokens 4 + 2 + 3 = 9; weights 2 + 2/3 + 2 + 1 = 17/3.
    assert samples[0].advantages[0] == pytest.approx(2 / 3 * 9 / (17 / 3))


def test_metrics_of_branches() -> None:
    # After 1 2: rewards 0 and 1, score ½. After 9: rewards 0 and 0, as the response, score ¼.
    second = BranchedPrefix(1, 1, 0.25, (graded([9, 7], 0.0), graded([9, 8], 0.0)))
    found = describe_branches([replace(group(), branches=(*group().branches, second))], tokens=17)
    assert found == {
        "branches": 2,
        "branch_tokens": 17,
        "branch_value": 0.25,
        "branch_decided": 0.5,
        "branch_prm_error": 0.125,
    }


def test_kl_in_the_reward_is_summed_over_the_tokens_that_follow() -> None:
    settings = replace(SETTINGS, kl_in_reward=0.1)
    arrays = {"old": lambda each: np.full(len(each.token_ids), 1.0), "ref": lambda each: np.zeros(len(each.token_ids))}
    plain, penalized = made([group()]), made([group()], settings, **arrays)
    lost = [(one.advantages - other.advantages).tolist() for one, other in zip(plain, penalized, strict=True)]
    scale = 10 / 6
    assert lost[0] == pytest.approx([0.4 * scale, 0.3 * scale, 0.2 / 3 * scale, 0.1 / 3 * scale])
    assert lost[2] == pytest.approx([0, 0, 0.3 / 3 * scale, 0.2 / 3 * scale, 0.1 / 3 * scale])
