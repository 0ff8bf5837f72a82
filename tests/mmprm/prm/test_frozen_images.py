"""Test PRM training with a frozen vision tower: cached image features change neither loss nor gradients."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from mmprm.backbone.image_features import FeatureCache, feature_cache
from mmprm.backbone.trainable import TrainableConfig
from mmprm.prm.data import PrmSample
from mmprm.prm.formats import MmPrmFormat
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import Prm, initialize_prm
from mmprm.prm.packing import Marks
from mmprm.prm.task import Packing, PrmTask, TrainingRows, make_rows
from mmprm.prm.train import prepare_model
from mmprm.training.batches import micro_batches
from mmprm.training.ranks import Ranks
from tests.backbones import tiny_solutions, write_backbone

ALONE = Ranks(0, 1, torch.device("cpu"))
EPOCHS, PROBLEMS = 2, 3
MAX_TOKENS = 150


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def prm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prm:
    folder = write_backbone(request.param, tmp_path_factory.mktemp(request.param) / "base")
    made = initialize_prm(str(folder), PrmTokens())
    prepare_model(made.model, TrainableConfig(frozen=("vision", "projector")))
    return made


def samples_of(prm: Prm) -> list[PrmSample]:
    """Return two paths of each problem; the second is a prefix of the first with one more step."""
    rng, marks, found = random.Random(0), Marks(MmPrmFormat(prm.processor, prm.info.tokens)), []
    for solution in tiny_solutions("qwen2_5_vl", PROBLEMS):
        for steps in (solution.steps, (*solution.steps[:1], "12-3=9")):
            made = type(solution)(solution.problem, steps)
            targets = tuple(rng.random() for _ in steps)
            found.append(PrmSample(made, targets, (1.0,) * len(steps), *marks(made)))
    return found


def train(prm: Prm, rows: TrainingRows, budget: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the loss of each micro-batch and the gradient of each epoch."""
    task, losses, gradients = PrmTask(rows, rows, budget, ALONE.device), [], []
    for _ in range(EPOCHS):
        prm.model.zero_grad()
        for (micro,) in micro_batches(range(len(rows.lengths)), rows.lengths, budget, ranks=1):
            losses.append(task.loss_sum(prm.model, task.collate(micro.samples)))
            losses[-1].backward()
        trained = [parameter for parameter in prm.model.parameters() if parameter.grad is not None]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained]))
    return [loss.detach() for loss in losses], gradients


def compare(prm: Prm, packing: Packing, budget: int) -> tuple[list[tuple[Tensor, Tensor]], tuple[int, int]]:
    """Return losses and gradients without and with the cache, and the numbers of vision tower calls."""
    rows = make_rows(
        samples_of(prm), MmPrmFormat(prm.processor, prm.info.tokens), prm.model.backbone, packing, MAX_TOKENS
    )
    found, calls = [], []
    for cache in (FeatureCache(), feature_cache(prm.model.backbone, ALONE, zero_stage=0)):
        prm.model.image_features = cache
        losses, gradients = train(prm, rows, budget)
        found.append([*losses, *gradients])
        calls.append(cache.tower_calls)
    return list(zip(*found, strict=True)), (calls[0], calls[1])


@pytest.mark.parametrize("packing", ["none", "trees"])
def test_cached_features_give_the_same_bits(prm: Prm, packing: Packing) -> None:
    """Each micro-batch has one row, so the tower computes each image alone."""
    pairs, (calls, own_calls) = compare(prm, packing, budget=1)
    assert all(torch.equal(plain, own) for plain, own in pairs)
    assert pairs[-1][0].norm() > 0.1
    assert (own_calls, calls) == (PROBLEMS, EPOCHS * PROBLEMS * (2 if packing == "none" else 1))


def test_an_image_that_occurs_twice_in_a_batch_is_computed_once(prm: Prm) -> None:
    """Features computed in another batch may differ by rounding."""
    pairs, (calls, own_calls) = compare(prm, "none", budget=MAX_TOKENS)
    assert all((own - plain).norm() <= 1e-5 * plain.norm() for plain, own in pairs)
    assert own_calls <= PROBLEMS < calls


def test_images_are_described_only_for_a_frozen_tower(prm: Prm) -> None:
    samples, form = samples_of(prm), MmPrmFormat(prm.processor, prm.info.tokens)
    (set_of_image,) = make_rows(samples, form, prm.model.backbone, "none", MAX_TOKENS).collate([0]).image_sets
    image_id = prm.processor.image_token_id
    assert set_of_image.features == int((torch.from_numpy(samples[0].ids) == image_id).sum())
    trained = next(parameter for name, parameter in prm.model.named_parameters() if "vis" in name)
    trained.requires_grad_(True)
    try:
        assert make_rows(samples, form, prm.model.backbone, "none", MAX_TOKENS).collate([0]).image_sets == ()
    finally:
        trained.requires_grad_(False)
