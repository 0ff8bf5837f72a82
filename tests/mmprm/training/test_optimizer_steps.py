"""Test steps of the real optimizer in one process: non-finite gradients, weight decay, and small bf16 gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import deepspeed
import pytest
import torch
from torch import Tensor, nn

from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.ranks import join_ranks
from mmprm.training.sharding import deepspeed_config

GOOD, NAN_LOSS, CONSTANT_NAN, STEEP = range(4)


def loss_of(kind: int, seed: int) -> Callable[[nn.Module], Tensor]:
    x_BH = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))

    def loss_sum(model: nn.Module) -> Tensor:
        y = model(x_BH.to(next(model.parameters()).dtype)).float().square().sum()
        return {
            GOOD: y,
            NAN_LOSS: y * float("nan"),
            CONSTANT_NAN: y + float("inf"),  # not visible in the gradient alone
            STEEP: (y - y.detach()).sqrt(),  # not visible in the loss alone: it is 0, with an infinite gradient
        }[kind]

    return loss_sum


def train(config: TrainingConfig, kinds: Sequence[int]) -> tuple[dict[str, Tensor], float, list[bool]]:
    """Run steps of two micro-batches: a good one and one of the given kind. The data depends on the number of good
    steps.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1))
    engine = Engine(model, config, 6, join_ranks())
    skipped: list[bool] = []
    for kind in kinds:
        good = skipped.count(False)
        loss, norm = engine.step([loss_of(GOOD, 2 * good), loss_of(kind, 2 * good + 1)], 6)
        skipped.append(engine.skipped)
        finite = torch.tensor([loss, 0.0 if norm is None else norm]).isfinite().all()
        assert bool(finite) != engine.skipped
    return engine.weights(), engine.learning_rate, skipped


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("stage", "offload"),
    [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "all")],
)
def test_a_bad_step_leaves_no_trace(stage: int, offload: str, precision: str) -> None:
    """Weights, gradients, moments and schedule are bitwise equal to a run without the bad step."""
    config = TrainingConfig(
        zero_stage=stage, offload=offload, precision=precision, learning_rate=0.05, warmup=0.5, gradient_clipping=0.5
    )
    weights, rate, skipped = train(config, [GOOD, NAN_LOSS, GOOD, CONSTANT_NAN, STEEP, GOOD])
    assert skipped == [False, True, False, True, True, False]
    expected, expected_rate, _ = train(config, [GOOD, GOOD, GOOD])
    start, _, _ = train(config, [])
    assert rate == expected_rate
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
        assert not torch.equal(tensor, start[name]), name


@pytest.mark.integration
@pytest.mark.parametrize("stage", [0, 3])
def test_matrices_decay_and_vectors_do_not(stage: int) -> None:
    """With zero gradient, a matrix becomes w − rate · decay · w. Under ZeRO-3, weights are loaded as shards without
    shape.
    """
    config = TrainingConfig(zero_stage=stage, precision="fp32", learning_rate=0.5, warmup=0, weight_decay=0.2)
    ranks = join_ranks()
    with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(config), enabled=stage == 3):
        model = nn.Linear(4, 8)
    engine = Engine(model, config, 6, ranks)
    before = engine.weights()
    engine.step([lambda model: model(torch.ones(1, 4)).sum() * 0], 1.0)
    after = engine.weights()
    torch.testing.assert_close(after["weight"], 0.9 * before["weight"])
    torch.testing.assert_close(after["bias"], before["bias"])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("stage", "offload"),
    [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "all")],
)
def test_many_small_gradients_of_bf16_add_up(stage: int, offload: str) -> None:
    """512 micro-batches each add a gradient of 1 to four weights, with norm 512 · 2; in bf16, 256 + 1 = 256."""
    config = TrainingConfig(zero_stage=stage, offload=offload, precision="bf16")
    model = nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    engine = Engine(model, config, 6, join_ranks())
    ones = torch.ones(1, 2, dtype=torch.bfloat16)
    for _ in range(2):  # the second step starts from zero
        _, norm = engine.step([lambda model: model(ones).float().sum()] * 512, 1.0)
        assert norm == pytest.approx(1024)
