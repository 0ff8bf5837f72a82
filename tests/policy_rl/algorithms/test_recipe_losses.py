"""Test the losses of shipped recipes against the published ones, written as a loop over a device's micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup, get_linear_schedule_with_warmup

from mmprm.config import load
from mmprm.training.engine import learning_rate_share
from policy_rl.algorithms.advantages import grpo
from policy_rl.algorithms.losses import LossConfig, denominator, policy_loss
from policy_rl.config import RLConfig
from policy_rl.rewards.outcome import length_penalty
from policy_rl.stages import read_stages

CONFIGS = Path(__file__).parents[3] / "configs"
LENGTHS = (2, 11, 3, 30, 5, 1, 17, 8)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def recipe(name: str, stage: int | None = None) -> RLConfig:
    if stage is not None:
        return read_stages(CONFIGS / f"stages/{name}.yaml")[stage - 1].config
    return load(RLConfig, CONFIGS / f"rl/{name}.yaml")


def clipped(ratio_T: Tensor, advantage: Tensor) -> Tensor:
    return -torch.minimum(ratio_T * advantage, ratio_T.clamp(0.8, 1.2) * advantage)


def ppo(lp_T: Tensor, old_T: Tensor, ref_T: Tensor, advantage: Tensor) -> Tensor:
    return clipped((lp_T - old_T).exp(), advantage)


def ppo_up_to_3(lp_T: Tensor, old_T: Tensor, ref_T: Tensor, advantage: Tensor) -> Tensor:
    """Compute MM-Eureka's loss with Qwen: the ratio is at most 3 for any advantage."""
    return clipped((lp_T - old_T).exp().clamp(max=3), advantage)


def with_k3(weight: float, surrogate: Loss) -> Loss:
    def loss(lp_T: Tensor, old_T: Tensor, ref_T: Tensor, advantage: Tensor) -> Tensor:
        k3_T = (ref_T - lp_T).exp() - (ref_T - lp_T) - 1
        return surrogate(lp_T, old_T, ref_T, advantage) + weight * k3_T

    return loss


def cpg(lp_T: Tensor, old_T: Tensor, ref_T: Tensor, advantage: Tensor) -> Tensor:
    """Compute CPGD's loss as released: clipped log-probabilities, and a drift term with a coefficient of at most 2."""
    above, below = (lp_T.clamp(max=old_T + math.log(1.2)), lp_T.clamp(min=old_T + math.log(0.8)))
    force_T = ((lp_T.detach() - old_T).exp() - 1).clamp(max=2.0)
    return -torch.where(advantage > 0, above, below) * advantage + 0.01 * force_T * lp_T


def published(loss: Loss, micro: int, by_token: bool, batch: dict[str, list[Tensor]]) -> Tensor:
    """Average over micro-batches of `micro` responses, each the mean over tokens or over response means."""
    means = []
    for start in range(0, len(LENGTHS), micro):
        parts = [loss(*each) for each in list(zip(*batch.values(), strict=True))[start : start + micro]]
        means.append(torch.cat(parts).mean() if by_token else torch.stack([part.mean() for part in parts]).mean())
    return torch.stack(means).mean()


def responses(seed: int) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def normal(length: int, scale: float) -> Tensor:
        return torch.randn(length, generator=generator, dtype=torch.float64) * scale

    old = [-normal(length, 1.0).abs() for length in LENGTHS]
    lp = [each + normal(len(each), 0.8) for each in old]
    return {
        "lp": [each.clone().requires_grad_() for each in lp],
        "old": old,
        "ref": [each + normal(len(each), 0.5) for each in lp],  # near enough for k3 not to be clamped
        "advantage": [normal(1, 1.0) for _ in LENGTHS],
    }


def gradients(loss: Tensor, batch: dict[str, list[Tensor]]) -> Tensor:
    return torch.cat(torch.autograd.grad(loss, batch["lp"]))


def ours(config: LossConfig, batch: dict[str, list[Tensor]]) -> Tensor:
    def padded(values: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)

    mask_NT = padded([torch.ones(length, dtype=torch.bool) for length in LENGTHS])
    advantages_NT = torch.stack(batch["advantage"]) * mask_NT
    size = denominator(mask_NT, config)
    lp_NT, old_NT, ref_NT = (padded(batch[name]) for name in ("lp", "old", "ref"))
    return policy_loss(lp_NT, old_NT, advantages_NT, mask_NT, size, config, ref_NT)[0]


PUBLISHED: dict[tuple[str, int | None], tuple[Loss, int, bool]] = {
    ("mm-eureka-8b", None): (ppo, 2, False),
    ("mm-eureka-zero-38b", None): (ppo, 1, False),
    ("mm-eureka-7b", None): (ppo_up_to_3, 2, False),
    ("mm-eureka-32b", 1): (ppo_up_to_3, 2, False),
    ("mm-eureka-32b", 2): (with_k3(1e-3, ppo_up_to_3), 2, False),
    ("cpgd-7b", None): (cpg, 1, True),
    ("lmm-r1-mgt-percereason", None): (ppo, 1, True),
    ("visualthinker-r1-zero", None): (with_k3(0.04, ppo), 8, False),
    ("r1-omni", 2): (with_k3(0.04, ppo), 8, False),
}


@pytest.mark.parametrize(("name", "stage"), PUBLISHED)
def test_the_gradient_is_the_published_one(name: str, stage: int | None) -> None:
    loss, micro, by_token = PUBLISHED[name, stage]
    config = recipe(name, stage).trainer.loss
    for seed in range(5):
        batch = responses(seed)
        expected = gradients(published(loss, micro, by_token, batch), batch)
        torch.testing.assert_close(gradients(ours(config, batch), batch), expected)
        over_tokens = config.model_copy(update={"aggregation": "token_mean"})
        difference = (gradients(ours(over_tokens, batch), batch) - expected).norm() / expected.norm()
        assert difference > 0.2, "a mean over all tokens is another loss"


def test_the_gradient_of_dapo() -> None:
    """Each token's ratio is clipped to [0.8, 1.28], and to 10 if A < 0; the mean is over all tokens of the update."""

    def loss(lp_T: Tensor, old_T: Tensor, ref_T: Tensor, advantage: Tensor) -> Tensor:
        ratio_T = (lp_T - old_T).exp()
        clipped_T = torch.maximum(-advantage * ratio_T, -advantage * ratio_T.clamp(0.8, 1.28))
        return torch.where(advantage < 0, torch.minimum(clipped_T, -10 * advantage), clipped_T)

    for seed in range(5):
        batch = responses(seed)
        expected = gradients(published(loss, len(LENGTHS), True, batch), batch)
        torch.testing.assert_close(gradients(ours(recipe("dapo-32b").trainer.loss, batch), batch), expected)


def test_half_of_dapos_penalty_for_half_of_its_reward() -> None:
    """DAPO's reward is ±1 minus up to 1 above 16,384 tokens; with accuracy 1 or 0 and half the penalty, GRPO advantages
    are equal.
    """
    config = recipe("dapo-32b").rewards
    lengths = [100, 16384, 18432, 20480]
    penalties = [0.0, 0.0, -0.5, -1.0]
    assert [length_penalty(length, config.length) for length in lengths] == penalties
    correct = [1.0, 0.0, 1.0, 0.0]
    theirs = [2 * accuracy - 1 + penalty for accuracy, penalty in zip(correct, penalties, strict=True)]
    mine = [a + config.length.weight * penalty for a, penalty in zip(correct, penalties, strict=True)]
    advantages = [grpo(torch.tensor([rewards]).double(), torch.ones(1, 4) > 0) for rewards in (theirs, mine)]
    torch.testing.assert_close(*advantages, atol=1e-5, rtol=0)


def course(name: str, steps: int, stage: int | None = None) -> list[float]:
    optimization = recipe(name, stage).trainer.optimization
    return [learning_rate_share(step, steps, optimization) for step in range(steps)]


def scheduled(schedule: Callable[..., torch.optim.lr_scheduler.LambdaLR], steps: int, **keys: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, num_training_steps=steps, **keys)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", ["mm-eureka-8b", "mm-eureka-7b", "lmm-r1-fre-multi"])
def test_learning_rates_of_openrlhf(name: str) -> None:
    """37 of 1,220 updates are warm-up. From the peak on, all rates are equal; before it, they rise by 1/38 instead of
    1/37.
    """
    share = course(name, 1220)
    published = scheduled(get_cosine_with_min_lr_schedule_with_warmup, 1220, num_warmup_steps=37, min_lr_rate=0.1)
    assert share[37:] == pytest.approx(published[37:])
    assert share[:37] == pytest.approx([(step + 1) / 38 for step in range(37)])
    assert published[:37] == pytest.approx([step / 37 for step in range(37)])


def test_learning_rates_of_cpgd_and_trl() -> None:
    cosine = scheduled(get_cosine_with_min_lr_schedule_with_warmup, 610, num_warmup_steps=0, min_lr_rate=0.1)
    assert course("cpgd-7b", 610) == pytest.approx(cosine)
    linear = scheduled(get_linear_schedule_with_warmup, 3750, num_warmup_steps=0)
    assert course("visualthinker-r1-zero", 3750) == pytest.approx(linear)
