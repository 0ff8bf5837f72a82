"""Test on-policy distillation: worked numbers, its expected gradient, and how it is combined with other advantages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted_rl import ScriptedTrainer, make_config, make_loop, metrics_of
from torch import Tensor

from mmprm.config import build
from mmprm.errors import ConfigError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.algorithms.advantages import AdvantageConfig
from policy_rl.algorithms.distillation import DistillationConfig, distillation_advantages
from policy_rl.algorithms.losses import LossConfig, policy_loss
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.metrics import metric_names
from policy_rl.types import Response, Reward, TrainingSample


def double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


OLD = double([[-1.0, -2.0, -3.0, 7.0], [-1.0, -30.0, 7.0, 7.0]])
TEACHER = double([[-2.0, -1.0, -3.5, float("nan")], [-1.0, -1.0, float("nan"), 7.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]) > 0


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        (0.0, [[-2, 2, -1, 0], [0, 40, 0, 0]]),
        (0.5, [[-2 + 1 - 0.25, 2 - 0.5, -1, 0], [20, 40, 0, 0]]),
        (1.0, [[-1, 1, -1, 0], [40, 40, 0, 0]]),
    ],
)
def test_by_hand(discount: float, expected: list[list[float]]) -> None:
    """2·(teacher − old) gives −2, 2 and −1; the second response's log-ratio of 29 is clamped to 20."""
    config = DistillationConfig(teacher="t", coefficient=2.0, discount=discount)
    advantages, kl = distillation_advantages(OLD, TEACHER, MASK, config)
    torch.testing.assert_close(advantages, double(expected))
    assert kl.tolist() == [[1.0, -1.0, 0.5, 0.0], [0.0, -20.0, 0.0, 0.0]]


def test_the_expected_gradient_is_that_of_the_reverse_kl() -> None:
    """Each token of a vocabulary of four is a response of one token, weighted by its probability."""
    logits = double([0.3, -1.0, 0.8, 0.0]).requires_grad_()
    teacher = torch.log_softmax(double([0.0, 0.5, -0.4, 0.2]), dim=0)[:, None]
    lp = torch.log_softmax(logits, dim=0)[:, None]
    old, mask = lp.detach(), torch.ones(4, 1, dtype=torch.bool)
    advantages, _ = distillation_advantages(old, teacher, mask, DistillationConfig(teacher="t", coefficient=0.5))
    loss, _ = policy_loss(lp, old, advantages, mask, torch.tensor(1.0), LossConfig(), weights=old.exp())
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(0.5 * (lp.exp() * (lp - teacher)).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_with_discount_1_it_is_the_gradient_for_whole_responses() -> None:
    """Enumerates all four responses of two binary tokens, where the second distribution depends on the first token."""
    first, second = double([0.4, -0.3]).requires_grad_(), double([[1.0, 0.0], [-0.5, 0.7]]).requires_grad_()
    lp_first, lp_second = torch.log_softmax(first, dim=0), torch.log_softmax(second, dim=1)
    lp = torch.stack([torch.stack([lp_first[a], lp_second[a, b]]) for a in (0, 1) for b in (0, 1)])
    teacher = double([[-0.2, -0.9], [-0.2, -0.5], [-1.7, -0.1], [-1.7, -2.4]])
    old, mask = lp.detach(), torch.ones(4, 2, dtype=torch.bool)
    advantages, _ = distillation_advantages(old, teacher, mask, DistillationConfig(teacher="t", discount=1.0))
    weights = old.sum(dim=1, keepdim=True).exp().expand(4, 2)
    loss, _ = policy_loss(lp, old, advantages, mask, torch.tensor(1.0), LossConfig(), weights=weights)
    divergence = (lp.sum(dim=1).exp() * (lp - teacher).sum(dim=1)).sum()
    found = torch.autograd.grad(loss, (first, second), retain_graph=True)
    for ours, exact in zip(found, torch.autograd.grad(divergence, (first, second)), strict=True):
        torch.testing.assert_close(ours, exact)


def graded(*rewards: float) -> GradedGroup:
    responses = [
        GradedResponse(Response("t", (1, 2), (-1.0, -1.0), "stop"), Grading(Verdict.CORRECT, None, ""), Reward(r, {}))
        for r in rewards
    ]
    return GradedGroup(Problem("p", "?", "1"), 5, 0, tuple(responses))


def advantages_of(samples: Sequence[TrainingSample]) -> list[list[float]]:
    return [each.advantages.tolist() for each in samples]


@pytest.mark.parametrize(("clamp", "first"), [(None, [1.5, -1.0]), (1.2, [1.2, -1.0])])
def test_it_is_added_to_the_outcome_before_the_clamp(clamp: float | None, first: list[float]) -> None:
    """RLOO gives 1 and −1, and the teacher 0.5 and −2 for the tokens of both responses."""
    groups = [graded(1.0, 0.0)]
    kept = kept_mask(groups, 2)
    old = np.array([-1.0, -1.0], dtype=np.float32)
    drafts = [replace(each, old=old, teacher=old + np.array([0.5, -2.0])) for each in draft(groups, kept)]
    settings = AdvantageSettings(AdvantageConfig(clamp=clamp), distillation=DistillationConfig(teacher="t"))
    samples, metrics = add_advantages(groups, kept, drafts, settings)
    second = [-0.5, -3.0] if clamp is None else [-0.5, -1.2]
    assert advantages_of(samples) == [pytest.approx(first), pytest.approx(second)]
    assert metrics["teacher_kl"] == pytest.approx(0.75)


class TaughtTrainer(ScriptedTrainer):
    """Has a teacher that finds every token half a nat less likely than the policy does."""

    def log_probs(self, samples: Sequence[TrainingSample], reference_only: bool = False) -> list[TrainingSample]:
        return [replace(each, teacher=each.old - 0.5) for each in super().log_probs(samples, reference_only)]


def test_a_run_without_any_other_reward(tmp_path: Path) -> None:
    more = {"rewards": {"accuracy_weight": 0}, "trainer": {"distillation": {"teacher": "t"}}}
    config, trainer = make_config(tmp_path / "run", steps=1, **more), TaughtTrainer()
    asyncio.run(make_loop(config, trainer=trainer).run())
    assert {value for batch in trainer.batches for each in batch for value in each.advantages.tolist()} == {-0.5}
    assert metrics_of(tmp_path / "run")[0]["teacher_kl"] == 0.5
    assert "teacher_kl" in metric_names(config)


@pytest.mark.parametrize("values", [{}, {"teacher": "t", "coefficient": 0}, {"teacher": "t", "discount": 1.5}])
def test_invalid_distillation_settings_are_rejected(values: dict) -> None:
    with pytest.raises(ConfigError, match=r"teacher|coefficient|discount"):
        build(DistillationConfig, values)
