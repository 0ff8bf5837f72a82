"""Test the built-in model shapes: parameter counts and vision towers as published."""

from __future__ import annotations

import pytest

from mmprm.planning.architectures import ARCHITECTURES
from mmprm.planning.shapes import shape_of

SIZES = {
    "InternVL2_5-8B": 8_075_365_376,
    "InternVL2_5-38B": 38_388_164_992,
    "InternVL2_5-38B-Pretrained": 38_388_164_992,
    "InternVL2_5-78B": 78_408_318_336,
    "InternVL3-8B": 7_944_373_760,
    "InternVL3-38B": 38_388_164_992,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2-VL-2B": 2_208_985_600,
    "Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen2.5-Omni-3B": 4_703_464_448,
    "Qwen2.5-Omni-7B": 8_931_813_888,
    "Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen3-VL-32B-Instruct": 33_357_390_064,
    "Qwen3-VL-30B-A3B-Instruct": 31_070_754_032,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_the_model_page(name: str) -> None:
    assert shape_of(name).total == SIZES[name]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if shape_of(name).vision])
def test_a_frozen_vision_tower_is_all_that_is_frozen(name: str) -> None:
    shape = shape_of(name, ("vision",))
    assert not shape.trains("vision")
    assert all(shape.parts[part][1] == 0 for part in ("projector", "language", "embeddings"))


def test_names_with_an_owner_or_native_suffix_are_the_same() -> None:
    assert shape_of("OpenGVLab/InternVL3-8B-hf") == shape_of("models/InternVL3-8B") == shape_of("InternVL3-8B")


def test_experts_count_in_total_and_by_token() -> None:
    """Qwen3-VL-30B-A3B uses 8 of 128 experts of 3 · 2048 · 768 parameters in each of 48 layers."""
    shape = shape_of("Qwen3-VL-30B-A3B-Instruct")
    assert shape.total - shape.active == 48 * 120 * 3 * 2048 * 768
    assert shape.language.intermediate == 8 * 768
    assert shape.largest == 128 * 2048 * 2 * 768, "gate and up of all experts of a layer are one tensor"
    dense = shape_of("Qwen3-VL-8B-Instruct")
    assert dense.active == dense.total


def test_the_largest_image() -> None:
    tower = shape_of("Qwen2.5-VL-7B-Instruct").vision
    assert tower.image_tokens(None) == 16384
    assert tower.image_tokens(501760) == 640, "640 · 28² pixels"
    assert shape_of("Qwen3-VL-8B-Instruct").vision.image_tokens(2**20) == 1024, "32² pixels per token"
    assert shape_of("InternVL3-8B").vision.image_tokens(501760) == 13 * 256, "tiles"


def test_layers_that_get_vision_features() -> None:
    assert shape_of("Qwen3-VL-8B-Instruct").vision.features == 1 + 3
    assert shape_of("Qwen2.5-VL-7B-Instruct").vision.features == 1
