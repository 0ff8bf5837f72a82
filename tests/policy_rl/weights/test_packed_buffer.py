"""Test vLLM's own packer on the tensor shapes of every shipped recipe, with the trainer's buffer size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from vllm.distributed.weight_transfer import packed_tensor

from mmprm.config import build, read_yaml
from mmprm.planning.architectures import published
from policy_rl.config import RLConfig
from policy_rl.stages import read_stages
from policy_rl.weights.transfer import ModelWeights
from policy_rl.weights.vllm import VllmTransfer

CONFIGS = Path(__file__).parents[3] / "configs"
GIB = 2**30


def recipes() -> dict[str, RLConfig]:
    found = {path.stem: build(RLConfig, read_yaml(path), str(path)) for path in sorted(CONFIGS.glob("rl/*.yaml"))}
    for path in sorted(CONFIGS.glob("stages/*.yaml")):
        stages = (stage for stage in read_stages(path) if stage.kind == "rl")
        found |= {f"{path.stem} {stage.number}": stage.config for stage in stages}
    return found


RECIPES = recipes()
MODELS = {config.hardware.shapes.get(name, name) for config in RECIPES.values() for name in [config.engine.model]}
PUBLISHED = sorted(name for name in MODELS if published(name) is not None)


def model_of(name: str) -> PreTrainedModel:
    """Return the published model without its weights."""
    shape = dict(published(name))
    config = CONFIG_MAPPING[shape.pop("model_type")](**shape)
    with torch.device("meta"):
        kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
        return kind.from_config(config)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the buffer by one that has a size but no storage."""
    stream = SimpleNamespace(synchronize=lambda: None)

    def empty(size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    own = SimpleNamespace(empty=empty, uint8=torch.uint8, cuda=SimpleNamespace(current_stream=lambda: stream))
    monkeypatch.setattr(packed_tensor, "torch", own)
    monkeypatch.setattr(packed_tensor, "reduce_tensor", lambda buffer: (None, (buffer.numel(),)))


def pack(weights: Any, buffer_bytes: int) -> tuple[list[str], int]:
    """Return the names in packing order, and the size of the largest chunk."""
    tensors = ((info.name, torch.empty(info.shape, dtype=info.dtype, device="meta")) for info in weights.metadata())
    names, largest = [], 0
    for chunk in packed_tensor.packed_ipc_producer(tensors, "GPU", lambda item: item[1], buffer_bytes):
        names += chunk.names
        largest = max(largest, sum(chunk.tensor_sizes))
    return names, largest


def buffer_bytes(weights: ModelWeights) -> int:
    transfer = VllmTransfer("ipc", [], 1, rank=0, timeout_seconds=1)
    transfer._weights = weights
    return transfer._init_info().packed_buffer_size_bytes


def test_every_recipe_begins_with_a_listed_model() -> None:
    """Later stages start from the output of an earlier stage of the same recipe in runs/."""
    assert len(PUBLISHED) >= 5
    assert {name for name in MODELS - set(PUBLISHED) if not name.startswith("runs/")} == {"tiny"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_tensor_of_a_recipe_is_refused(name: str) -> None:
    weights = ModelWeights(model_of(name), torch.bfloat16)
    size = buffer_bytes(weights)
    names, largest = pack(weights, size)
    assert names == [info.name for info in weights.metadata()]
    assert largest <= size


def test_the_default_buffer_refuses_the_output_layer_of_a_7b_model() -> None:
    """It has 151,936 + 128 rows of 3,584 numbers of two bytes each."""
    weights = ModelWeights(model_of("Qwen2.5-VL-7B-Instruct"), torch.bfloat16)
    with pytest.raises(ValueError, match="has size 1089994752 bytes, which exceeds"):
        pack(weights, GIB)
    assert buffer_bytes(weights) == 1_089_994_752


def test_a_small_model_keeps_the_default_buffer() -> None:
    assert buffer_bytes(ModelWeights(torch.nn.Linear(4, 4), torch.bfloat16)) == GIB
