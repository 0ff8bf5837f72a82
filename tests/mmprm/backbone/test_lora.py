"""Test adapters on frozen weights: which parameters are trained, and the merged checkpoint, which gives the same
scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import Prm, initialize_prm, load_prm, save_prm
from mmprm.prm.train import TrainConfig, prepare_model
from mmprm.training.lora import plain_weights
from tests.backbones import tiny_solutions, write_backbone

NAMES = ["internvl", "llama", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(backbone, tmp_path_factory.mktemp(backbone))


def adapted(folder: Path, *sets: str) -> Prm:
    torch.manual_seed(0)
    prm = initialize_prm(str(folder), PrmTokens())
    prepare_model(prm.model, load(TrainConfig, None, ["model=x", "labels=x", "output=x", "lora.rank=4", *sets]))
    return prm


def trained(prm: Prm) -> list[str]:
    return [name for name, parameter in prm.model.backbone.named_parameters() if parameter.requires_grad]


def train_few_steps(prm: Prm, inputs: Any, target_M: torch.Tensor) -> None:
    prm.model.train()
    optimizer = torch.optim.Adam([p for p in prm.model.parameters() if p.requires_grad], lr=0.003)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = cross_entropy(prm.model(**inputs), target_M)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    prm.model.eval()


def check_moved(prm: Prm, backbone: str, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Check that only the adapted projections and the PRM's own token rows changed."""
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    tables = {name for name in moved if "embed_tokens" in name or "lm_head" in name}
    assert moved - tables == {
        name for name in before if name.endswith("_proj.weight") and ".layers." in name and "vis" not in name
    }
    assert len(tables) == 2
    for name in tables:
        rows = (before[name] != after[name]).any(dim=1).nonzero().flatten().tolist()
        if backbone == "llama":  # tied embeddings
            assert set(rows) == {prm.renderer.marker_id, *prm.model.judgment_ids}, name
        else:
            assert set(rows) == ({prm.renderer.marker_id} if "embed" in name else set(prm.model.judgment_ids)), name


def test_trained_adapters_become_a_plain_checkpoint(backbone: str, folder: Path, tmp_path: Path) -> None:
    plain = initialize_prm(str(folder), PrmTokens())
    before = {name: tensor.clone() for name, tensor in plain.model.backbone.state_dict().items()}
    prm = adapted(folder, "lora.dropout=0.1")
    inputs = prm.renderer.encode(tiny_solutions(backbone, 4))
    prm.model.eval()
    with torch.no_grad():
        start_M2 = prm.model(**inputs)
        torch.testing.assert_close(start_M2, plain.model.eval()(**inputs))
    train_few_steps(prm, inputs, (torch.arange(len(start_M2)) < len(start_M2) // 3).long())
    weights = plain_weights(prm.model.backbone, prm.model.backbone.state_dict(keep_vars=True))
    save_prm(tmp_path / "prm", prm, {name: tensor.detach() for name, tensor in weights.items()})
    loaded = load_prm(tmp_path / "prm")
    with torch.no_grad():
        scores_M2 = prm.model(**inputs)
        assert (scores_M2 - start_M2).abs().max() > 0.05
        torch.testing.assert_close(loaded.model(**inputs), scores_M2, rtol=0, atol=1e-5)
    check_moved(prm, backbone, before, loaded.model.backbone.state_dict())


def test_the_scale_by_hand() -> None:
    """With W = 0, B A = [[1·2, 1·3], [0, 0]] is scaled by alpha / rank = 8 / 1."""
    import peft

    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    torch.nn.init.zeros_(model[0].weight)
    peft.inject_adapter_in_model(peft.LoraConfig(r=1, lora_alpha=8, target_modules=["0"]), model)
    with torch.no_grad():
        model[0].lora_A["default"].weight.copy_(torch.tensor([[2.0, 3.0]]))
        model[0].lora_B["default"].weight.copy_(torch.tensor([[1.0], [0.0]]))
    plain = plain_weights(model, model.state_dict())
    assert plain.keys() == {"0.weight"}
    assert plain["0.weight"].tolist() == [[16.0, 24.0], [0.0, 0.0]]
    assert plain_weights(torch.nn.Linear(1, 1), {"weight": torch.ones(1)}) == {"weight": torch.ones(1)}


@pytest.mark.parametrize("backbone", ["qwen2_5_vl"], indirect=True)
def test_targets_and_frozen_parts(folder: Path) -> None:
    """The vision tower has layers of the same names, which are adapted only if the targets name them."""
    assert not any("visual" in name for name in trained(adapted(folder)))
    names = trained(adapted(folder, r"lora.targets=['visual.*_proj$', 'q_proj$']"))
    assert any("visual" in name for name in names)
    assert any("layers.1.self_attn.q_proj.lora_A" in name for name in names)
    names = trained(adapted(folder, r"lora.targets=['visual.*_proj$', 'q_proj$']", "frozen=[vision]"))
    assert not any("visual" in name for name in names)
    assert any("q_proj.lora_B" in name for name in names)
    with pytest.raises(
        ConfigError, match=r"lora.targets=\['w1'\]: must match a linear layer; the layers are lm_head, "
    ):
        adapted(folder, "lora.targets=[w1]")
    with pytest.raises(ConfigError, match=r"lora.targets matches only frozen layers"):
        adapted(folder, "frozen=[language]")
    with pytest.raises(ConfigError, match=r"must not match the output layer lm_head"):
        adapted(folder, "lora.targets=['_proj$', lm_head]")
