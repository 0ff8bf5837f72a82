"""Test that a layer's experts are sent to engines exactly as a published checkpoint stores them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprm.backbone.load import load_backbone
from policy_rl.weights.transfer import ModelWeights
from tests.backbones import write_backbone


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_vl_moe", "qwen3_5_moe"])
def test_tensors_sent_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    folder = write_backbone(name, tmp_path)
    stored = load_file(folder / "model.safetensors")
    weights = ModelWeights(load_backbone(str(folder), torch.float32)[0], torch.float32)
    sent = dict(weights)
    assert sent.keys() == stored.keys()
    for key, tensor in stored.items():
        assert torch.equal(sent[key], tensor), key
    shapes = [(info.name, info.shape) for info in weights.metadata()]
    assert shapes == [(key, tuple(tensor.shape)) for key, tensor in sent.items()]
    experts = {key: tensor.shape for key, tensor in sent.items() if "layers.0.mlp.experts" in key}
    if name == "qwen3_vl_moe":
        assert sorted(map(tuple, experts.values())) == [(4, 64, 192), (4, 96, 64)]
    else:
        assert len(experts) == 4 * 3
