"""Test every backbone as a process reward model: marker logits, training, frozen parts, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmprm.backbone.freeze import PARTS
from mmprm.prm.formats import MmPrmFormat
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import Prm, initialize_prm, load_prm, save_prm
from mmprm.prm.packing import Marks
from mmprm.prm.train import TrainConfig, prepare_model
from mmprm.types import Solution
from tests.backbones import BACKBONES, WITH_IMAGE, tiny_solutions, write_backbone


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(backbone, tmp_path_factory.mktemp(backbone))


@pytest.fixture(scope="module")
def solutions(backbone: str) -> list[Solution]:
    found = tiny_solutions(backbone, 3)
    assert {bool(solution.problem.images) for solution in found} == {backbone in WITH_IMAGE}
    return found


@pytest.fixture
def prm(folder: Path) -> Prm:
    return initialize_prm(str(folder), PrmTokens())


def loss_of(prm: Prm, solutions: list[Solution]) -> Tensor:
    """Return the soft cross-entropy over all steps; the targets of each solution fall from 0.9 to 0.1."""
    logits_M2 = prm.model(**prm.renderer.encode(solutions))
    y_M = torch.cat([torch.linspace(0.9, 0.1, len(solution.steps)) for solution in solutions])
    return cross_entropy(logits_M2, torch.stack([y_M, 1 - y_M], dim=1))


@torch.no_grad()
def test_judgment_logits_equal_the_full_logits(prm: Prm, solutions: list[Solution]) -> None:
    inputs = prm.renderer.encode(solutions)
    logits_BTV = prm.model.backbone(**inputs).logits
    at_marker_M2 = logits_BTV[inputs["input_ids"] == prm.renderer.marker_id][:, prm.model.judgment_ids]
    assert at_marker_M2.std() > 0.01
    torch.testing.assert_close(prm.model(**inputs), at_marker_M2, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_image_is_seen_and_padding_is_not(backbone: str, prm: Prm, solutions: list[Solution]) -> None:
    prm.model.eval()
    together_M2 = prm.model(**prm.renderer.encode(solutions))
    alone_M2 = torch.cat([prm.model(**prm.renderer.encode([solution])) for solution in solutions])
    torch.testing.assert_close(together_M2, alone_M2, rtol=1e-4, atol=1e-5)
    marks = Marks(MmPrmFormat(prm.processor, prm.info.tokens))
    lengths = prm.renderer.encode(solutions)["attention_mask"].sum(dim=1).tolist()
    assert [len(marks(solution)[0]) for solution in solutions] == lengths
    if backbone in WITH_IMAGE:
        inputs = prm.renderer.encode(solutions)
        inputs["pixel_values"] = inputs["pixel_values"].flip(0)
        assert (prm.model(**inputs) - together_M2).abs().max() > 1e-5


def test_a_step_of_training_lowers_the_loss_and_moves_the_marker(prm: Prm, solutions: list[Solution]) -> None:
    prm.model.train()
    table_VH = prm.model.backbone.get_input_embeddings().weight
    before_VH = table_VH.detach().clone()
    optimizer = torch.optim.SGD(prm.model.parameters(), lr=0.005)
    first = loss_of(prm, solutions)
    first.backward()
    optimizer.step()
    assert loss_of(prm, solutions).item() < first.item() - 0.01
    assert not torch.equal(table_VH[prm.renderer.marker_id], before_VH[prm.renderer.marker_id])


def test_gradient_checkpointing_changes_no_gradient(folder: Path, prm: Prm, solutions: list[Solution]) -> None:
    other = initialize_prm(str(folder), PrmTokens())
    config = {"model": "x", "labels": "x", "output": "x"}
    prepare_model(prm.model, TrainConfig(**config))
    prepare_model(other.model, TrainConfig(**config, gradient_checkpointing=True))
    assert other.model.backbone.is_gradient_checkpointing
    for one in (prm, other):
        loss_of(one, solutions).backward()
    for (name, left), (_, right) in zip(prm.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None), name
        if left.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_parts_are_frozen_by_name(backbone: str, folder: Path) -> None:
    """The parts cover the whole model, and each parameter belongs to exactly one part."""
    counts = {}
    own = [part for part in PARTS if part != "audio"] if backbone in WITH_IMAGE else ["language"]
    for part in own:
        others = [other for other in own if other != part]
        model = initialize_prm(str(folder), PrmTokens()).model
        prepare_model(model, TrainConfig(model="x", labels="x", output="x", frozen=tuple(others)))
        trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
        assert trained, part
        counts[part] = len(trained)
        if part == "vision":
            assert not any("merger" in name or "projector" in name or "language" in name for name in trained)
            assert any("block" in name or "encoder" in name for name in trained)
        if part == "projector":
            assert all("merger" in name or "projector" in name for name in trained)
    assert sum(counts.values()) == len(list(model.backbone.parameters()))


@torch.no_grad()
def test_saved_and_loaded(prm: Prm, solutions: list[Solution], tmp_path: Path) -> None:
    save_prm(tmp_path / "prm", prm)
    loaded = load_prm(tmp_path / "prm")
    assert type(loaded.processor) is type(prm.processor)
    prm.model.eval()
    torch.testing.assert_close(
        loaded.model(**loaded.renderer.encode(solutions)), prm.model(**prm.renderer.encode(solutions))
    )
