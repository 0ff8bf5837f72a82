"""Test process reward that is compared only among responses with the same outcome."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmprm.config import build
from mmprm.errors import ConfigError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.algorithms.advantages import AdvantageConfig
from policy_rl.algorithms.baselines import ScoredSteps
from policy_rl.algorithms.credit import Credit, assign
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards
from policy_rl.types import Response, Reward

RIGHT, WRONG, UNKNOWN = 1, 0, -1


def credit(scores: list[list[float]], outcomes: list[int], **values: Any) -> Credit:
    """Return the credit of one group of responses, given as step scores and outcomes."""
    width = max(map(len, scores))
    scores_PKS = torch.tensor([[[*steps, *[0.0] * (width - len(steps))] for steps in scores]])
    mask_PKS = torch.arange(width) < torch.tensor([[len(steps) for steps in scores]])[..., None]
    kept_PK = torch.ones(1, len(scores), dtype=torch.bool)
    config = build(CreditConfig, {"compare_within": "outcome"} | values)
    return assign(ScoredSteps(scores_PKS, 10 * mask_PKS, mask_PKS), kept_PK, torch.tensor([outcomes]), config)


def assert_near(actual: Tensor, expected: list) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def test_by_hand() -> None:
    """With one step each, G = 2p − 1: .8 and .4 for the correct responses, .6 and −.6 for the incorrect ones."""
    found = credit([[0.9], [0.7], [0.8], [0.2]], [RIGHT, RIGHT, WRONG, WRONG])
    assert_near(found.returns_PKS, [[[0.4], [-0.4], [1.2], [-1.2]]])
    whole = credit([[0.9], [0.7], [0.8], [0.2]], [RIGHT, RIGHT, WRONG, WRONG], compare_within="group")
    assert_near(whole.returns_PKS, [[[2 / 3], [2 / 15], [0.4], [-1.2]]])


def test_scores_that_prefer_incorrect_answers_have_no_effect() -> None:
    """Compared within the group, each correct response would lose .8 + .8/3 = 16/15."""
    scores, outcomes = [[0.1], [0.1], [0.9], [0.9]], [RIGHT, RIGHT, WRONG, WRONG]
    assert_near(credit(scores, outcomes).returns_PKS, [[[0.0]] * 4])
    whole = credit(scores, outcomes, compare_within="group").returns_PKS
    assert_near(whole, [[[-16 / 15]] * 2 + [[16 / 15]] * 2])


@pytest.mark.parametrize("values", [{}, {"mode": "strict_min"}, {"mode": "return_to_go", "transform": "delta"}])
def test_credit_is_centered_within_each_outcome(values: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(int(length), generator=generator).tolist() for length in torch.randint(1, 6, (9,))]
    outcomes = [RIGHT] * 4 + [WRONG] * 5
    returns_KS = credit(scores, outcomes, **values).returns_PKS[0]
    for same in (returns_KS[:4], returns_KS[4:]):
        assert same.sum(dim=0).abs().max() < 1e-6
    assert returns_KS.abs().max() > 0.1


def test_equal_outcomes_are_compared_as_a_group() -> None:
    scores = [[0.9, 0.2], [0.7], [0.8, 0.6, 0.1]]
    for outcome in (RIGHT, WRONG):
        found = credit(scores, [outcome] * 3).returns_PKS
        torch.testing.assert_close(found, credit(scores, [outcome] * 3, compare_within="group").returns_PKS)


def test_steps_are_normalized_within_an_outcome() -> None:
    """Two values normalize to ±1/√2 with the unbiased standard deviation, however far apart they are."""
    keys = {"mode": "return_to_go", "baseline": "none", "normalize_steps": True}
    found = credit([[0.9], [0.7], [0.8], [0.2]], [RIGHT, RIGHT, WRONG, WRONG], **keys).returns_PKS
    torch.testing.assert_close(found[0, :, 0], torch.tensor([1.0, -1.0, 1.0, -1.0]) / 2**0.5, atol=1e-4, rtol=0)


def test_the_only_response_with_its_outcome_earns_nothing() -> None:
    found = credit([[0.9], [0.2], [0.6]], [RIGHT, WRONG, WRONG])
    assert_near(found.returns_PKS, [[[0.0], [-0.8], [0.8]]])
    assert found.alone_PK.tolist() == [[True, False, False]]
    assert found.scored_PK.tolist() == [[False, True, True]]


def test_unknown_outcomes_are_not_compared_with_incorrect_ones() -> None:
    found = credit([[0.9], [0.2], [0.6], [0.1]], [WRONG, UNKNOWN, WRONG, UNKNOWN])
    assert_near(found.returns_PKS, [[[0.6], [0.2], [-0.6], [-0.2]]])


def test_advantages_of_an_outcome_sum_to_those_of_the_outcome_alone() -> None:
    """RLOO gives 1 − 1/4 and 0 − 2/4. The unknown accuracy is a third outcome, with a single response."""
    responses = []
    for accuracy, score in ((1.0, 0.1), (1.0, 0.3), (0.0, 0.9), (0.0, 0.8), (None, 0.5)):
        reward = Reward(accuracy or 0.0, {"accuracy": accuracy})
        response = Response("a", [1, 2], [-1.0, -1.0], "stop")
        process = StepRewards((score,), [0, 0])
        responses.append(GradedResponse(response, Grading(Verdict.UNKNOWN, None, ""), reward, process))
    groups = [GradedGroup(Problem("p", "q", "a"), 5, 0, tuple(responses))]
    settings = AdvantageSettings(AdvantageConfig(), build(CreditConfig, {"compare_within": "outcome"}))
    kept_PK = kept_mask(groups, 2)
    samples, metrics = add_advantages(groups, kept_PK, draft(groups, kept_PK), settings)
    found = [each.advantages[0] for each in samples]
    outcome = [1 - 1 / 4] * 2 + [0 - 2 / 4] * 3
    process = [-0.4, 0.4, 0.2, -0.2, 0.0]
    assert found == pytest.approx([a + b for a, b in zip(outcome, process, strict=True)])
    assert (metrics["scored"], metrics["alone"]) == (4, 1)


@pytest.mark.parametrize(
    "values", [{"mode": "scalar"}, {"mode": "step_gae"}, {"mode": "value"}, {"baseline": "none"}, {"gate": "correct"}]
)
def test_settings_without_an_effect_are_rejected(values: dict[str, Any]) -> None:
    ((key, value),) = values.items()
    with pytest.raises(ConfigError, match=rf"compare_within=outcome has no effect with {key}={value}"):
        build(CreditConfig, {"compare_within": "outcome"} | values)
