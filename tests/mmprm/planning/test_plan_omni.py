"""Test the memory of Qwen2.5-Omni: values by hand for its audio tower, and the larger of both towers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmprm.planning.engine import EngineSettings, _largest_media, weights_per_gpu
from mmprm.planning.shapes import Shape, shape_of
from mmprm.planning.trainer import TrainerSettings, _towers, feature_bytes, forward_parts

OMNI, VISION_ONLY = "Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-VL-7B-Instruct"
ATTENTION = 4 * 1280**2 + 3 * 1280  # the key projection has no bias
LAYER = ATTENTION + 4 * 1280 + 2 * 1280 * 5120 + 5120 + 1280
CONVOLUTIONS = (3 * 128 * 1280 + 1280) + (3 * 1280 * 1280 + 1280)
PROJECTOR = 1280 * 3584 + 3584
AUDIO = CONVOLUTIONS + 32 * LAYER + 2 * 1280 + 2 * 3584
"""Parameters of the audio tower: convolutions, layers, last norm, and the embeddings of its beginning and end."""
TRAINER = TrainerSettings(8, 3, "bf16", "none", tokens=1000, longest=1000, checkpointing=True)
ENGINE = EngineSettings("bfloat16", 1, 0.9, longest=4096, max_num_seqs=256, max_pixels=224 * 224)


def shape(*frozen: str) -> Shape:
    return shape_of(OMNI, frozen)


def test_the_thinker_is_the_vision_language_model_with_an_audio_tower() -> None:
    whole = shape()
    assert whole.total == shape_of(VISION_ONLY).total + AUDIO + PROJECTOR == 8_931_813_888
    assert whole.parts["audio"] == (AUDIO, 0)
    assert whole.parts["projector"][0] == shape_of(VISION_ONLY).parts["projector"][0] + PROJECTOR
    assert replace(whole.vision, largest=0) == replace(shape_of(VISION_ONLY).vision, largest=0)
    assert whole.language == shape_of(VISION_ONLY).language
    assert shape("vision", "audio").trained == whole.total - whole.parts["vision"][0] - AUDIO


def test_the_larger_tower_counts() -> None:
    """Per token, bf16. Frozen: images have 4 positions of 2(2H + 3I) + 4H bytes, audio 2 of 2(2H + 2I) + 4H."""
    frozen = forward_parts(shape("vision", "audio"), TRAINER)["vision, audio and projector"]
    assert frozen == 1000 * (4 * (2 * (2560 + 3 * 3420) + 5120) + 2 * 3584) == 1000 * 130_208
    # Kept: 2H per layer, and 8H around them. In work: the saved tensors of a layer, and 6I.
    saved = 2 * 8 * 1280 + 8 + 4 * 5120 + 8 * 1280 + 4 * 20
    audio = 2 * (32 * 2560 + 8 * 1280) + 2 * (saved + 6 * 5120)
    assert audio == 348_336
    projector = 6 * 2 * 1280 + 4 * 3584
    assert _towers(shape("vision"), TRAINER) == 1000 * (audio + projector)
    assert _towers(shape("vision", "audio"), TRAINER) < _towers(shape("vision"), TRAINER) < _towers(shape(), TRAINER)


def test_every_gpu_of_an_engine_holds_the_whole_audio_tower() -> None:
    whole = shape()
    alone = AUDIO + PROJECTOR
    assert weights_per_gpu(whole, 4) == alone + (whole.total - alone) / 4


def test_an_engine_reserves_memory_for_the_media_that_it_accepts() -> None:
    """An image of 224² pixels has 64 tokens, a video of 14 frames 7 times as many, a recording up to 7,500."""
    whole = shape()
    assert _largest_media(whole, ENGINE) == {"vision": 64}
    both = replace(ENGINE, videos=True, audios=True)
    assert _largest_media(whole, both) == {"vision": 7 * 64, "audio": 4096}
    assert _largest_media(whole, replace(both, longest=8192)) == {"vision": 448, "audio": 7500}
    assert _largest_media(whole, replace(both, longest=100)) == {"vision": 100, "audio": 100}
    assert _largest_media(shape_of(VISION_ONLY), ENGINE) == {"vision": 64}


def test_features_of_models_with_audio_are_not_cached() -> None:
    assert feature_bytes(shape("vision", "audio", "projector")) == 0
    assert feature_bytes(shape_of(VISION_ONLY, ("vision", "projector"))) == 2**31


@pytest.mark.parametrize(("model", "context"), [("Qwen2.5-Omni-3B", 32768), ("Qwen2.5-Omni-7B", 32768)])
def test_the_context_is_that_of_the_thinker(model: str, context: int) -> None:
    assert shape_of(model).context == context
