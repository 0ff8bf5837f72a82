"""Test that a vision tower computes the windows of a layer in one call, with the same result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from mmprm.backbone.load import load_backbone
from mmprm.backbone.window_attention import MAX_PADDING, WINDOWS, use_window_batches, window_batches
from tests.backbones import write_backbone

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
VISION = {"depth": 3, "num_heads": 2}


def qwen2_5_vl() -> nn.Module:
    vision = {**VISION, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32}
    vision |= {"fullatt_block_indexes": [2]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision))


def qwen2_vl() -> nn.Module:
    vision = {**VISION, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 1}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT, vision_config=vision))


def tower(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def pixels(grids: list[list[int]]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sum(t * h * w for t, h, w in grids), 3 * 2 * 14 * 14, generator=generator)


def run(model: nn.Module, grids: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, int]:
    """Return the features, the gradient of the first layer's attention, and the number of attention calls."""
    calls = []
    original = nn.functional.scaled_dot_product_attention

    def count(*arguments: object, **options: object) -> Tensor:
        calls.append(1)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", count)
        found = model.model.get_image_features(pixels(grids), torch.tensor(grids), return_dict=True)
    features = torch.cat(tuple(found.pooler_output))
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    (features * weights).sum().backward()
    return features.detach(), model.model.visual.blocks[0].attn.qkv.weight.grad.clone(), len(calls)


@pytest.mark.parametrize(
    ("make", "grids", "before", "after"),
    [
        (qwen2_5_vl, [[1, 16, 16]], 2 * 4 + 1, 3),  # four windows of 8 × 8 patches
        (qwen2_5_vl, [[1, 20, 18]], 2 * 9 + 1, 3),  # the last windows in rows and columns are smaller
        (qwen2_5_vl, [[1, 20, 18], [1, 18, 20]], 2 * 18 + 2, 3),
        (qwen2_5_vl, [[1, 24, 24], [1, 2, 4]], 2 * 10 + 2, 2 * 1 + 2),  # images too different in size to pad
        (qwen2_vl, [[1, 4, 6], [1, 6, 4], [1, 4, 4]], 3 * 3, 3),
        (qwen2_vl, [[1, 4, 6], [1, 16, 16], [1, 4, 6]], 3 * 3, 3 * 2),
    ],
)
def test_one_call_per_layer_with_equal_result(make, grids, before, after, monkeypatch) -> None:
    monkeypatch.setitem(MAX_PADDING, "cpu", MAX_PADDING["cuda"])
    model = tower(make)
    features, gradient, calls = run(model, grids, monkeypatch)
    use_window_batches(model)
    own_features, own_gradient, own_calls = run(model, grids, monkeypatch)
    assert (calls, own_calls) == (before, after)
    assert torch.allclose(own_features, features, atol=1e-6, rtol=0)
    assert torch.allclose(own_gradient, gradient, atol=1e-6 * gradient.abs().max().item(), rtol=1e-5)


def test_one_call_per_length_on_cpu_with_identical_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers have windows of 64, 32, 16 and 8 patches; the third attends to the whole image."""
    model, grids = tower(qwen2_5_vl), [[1, 20, 18]]
    features, _, calls = run(model, grids, monkeypatch)
    use_window_batches(model)
    own_features, _, own_calls = run(model, grids, monkeypatch)
    assert (calls, own_calls) == (2 * 9 + 1, 2 * 4 + 1)
    assert torch.equal(own_features, features)


def test_window_batches_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 3, 2 and 3 form one batch with a padded slot; windows of 1 and 300 form one batch each."""
    monkeypatch.setitem(MAX_PADDING, "cpu", MAX_PADDING["cuda"])
    (batch,) = window_batches(torch.tensor([0, 3, 5, 8]))
    assert batch.shape_WL == (3, 3)
    assert batch.slot_S.tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert batch.mask_W11L[:, 0, 0].tolist() == [[True] * 3, [True, True, False], [True] * 3]
    single, long = window_batches(torch.tensor([0, 1, 2, 302, 303, 304]))
    assert (single.index_S.tolist(), single.shape_WL, single.mask_W11L) == ([0, 1, 302, 303], (4, 1), None)
    assert (long.index_S.tolist(), long.shape_WL, long.mask_W11L) == (list(range(2, 302)), (1, 300), None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qwen2_5_vl", WINDOWS), ("qwen2_vl", WINDOWS), ("qwen3_vl", WINDOWS), ("internvl", "sdpa")],
)
def test_loaded_models_use_it_and_saved_ones_do_not_name_it(name, expected, tmp_path) -> None:
    model, _ = load_backbone(str(write_backbone(name, tmp_path / "model")), torch.float32)
    assert model.config.vision_config._attn_implementation == expected
    assert model.config.text_config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path / "saved")
    assert WINDOWS not in (tmp_path / "saved" / "config.json").read_text()
