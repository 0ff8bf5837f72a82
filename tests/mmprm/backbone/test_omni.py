"""Test Qwen2.5-Omni: loading, storing, positions, features, banned tokens, frozen parts and the sizes of frames.

Each test of a tiny random checkpoint covers something in which transformers or vLLM treats this model differently from
the vision-language models.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, Qwen2_5OmniThinkerForConditionalGeneration

from mmprm.backbone.experts import save_backbone, stored_tensors
from mmprm.backbone.freeze import PARTS
from mmprm.backbone.load import load_backbone
from mmprm.backbone.omni import feature_order, stand_in_media, with_stand_ins
from mmprm.backbone.positions import Positions
from mmprm.backbone.processor import vision_token_ids
from mmprm.data.media_inputs import processor_arguments
from mmprm.errors import CheckpointError
from mmprm.tiny.omni_clip import encode_clip
from mmprm.tiny.omni_model import MEDIA_TOKENS, PIXELS
from mmprm.types import AudioRef, ImageRef, MediaRef, VideoRef
from tests.mmprm.data.test_images import PNG
from tests.mmprm.data.test_media import gray_frames, tone

CLIP = encode_clip(gray_frames(16, 56, 56), tone(440))
IMAGE, VIDEO, AUDIO = ImageRef(data=PNG), VideoRef(data=CLIP), AudioRef(data=CLIP)
MEDIA: dict[str, tuple[MediaRef, ...]] = {
    "image": (IMAGE,),
    "audio": (AUDIO,),
    "video": (VIDEO,),
    "video, then its audio": (VIDEO, AUDIO),
    "all, two of a kind": (IMAGE, VIDEO, AUDIO, VIDEO),
}
MARKS = {ImageRef: "<|vision_bos|><|IMAGE|><|vision_eos|>", VideoRef: "<|vision_bos|><|VIDEO|><|vision_eos|>"}
MARKS |= {AudioRef: "<|audio_bos|><|AUDIO|><|audio_eos|>"}


@pytest.fixture(scope="module")
def loaded(omni_folder: Path) -> tuple[Any, Any]:
    backbone, processor = load_backbone(str(omni_folder), torch.float32)
    return backbone.eval(), processor


def inputs_of(processor: Any, media: tuple[MediaRef, ...], limits: dict[str, int] = PIXELS) -> dict[str, torch.Tensor]:
    text = "".join(MARKS[type(each)] for each in media) + "Which emotion?"
    return dict(processor(text=[text], return_tensors="pt", **processor_arguments(processor, media, limits)))


@pytest.mark.parametrize("media", MEDIA.values(), ids=MEDIA)
def test_logits_equal_those_of_transformers(
    loaded: tuple[Any, Any], omni_folder: Path, media: tuple[MediaRef, ...]
) -> None:
    backbone, processor = loaded
    theirs = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(omni_folder, dtype=torch.float32).eval()
    inputs = inputs_of(processor, media)
    with torch.no_grad():
        expected = theirs(**inputs, use_cache=False).logits
        found = backbone(**inputs).logits
        without = backbone(input_ids=inputs["input_ids"]).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - without)[:, -1].abs().max() > 1e-3, "the media change the answer"


@pytest.mark.parametrize("media", MEDIA.values(), ids=MEDIA)
def test_positions_are_those_of_transformers(loaded: tuple[Any, Any], media: tuple[MediaRef, ...]) -> None:
    backbone, processor = loaded
    inputs = inputs_of(processor, media)
    ids_1T = inputs["input_ids"]
    mask = inputs.get("feature_attention_mask")
    expected, _ = Qwen2_5OmniThinkerForConditionalGeneration.get_rope_index(
        backbone.model,
        ids_1T,
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        torch.ones_like(ids_1T),
        False,
        None if mask is None else mask.sum(dim=1),
        inputs.get("video_second_per_grid"),
    )
    torch.testing.assert_close(Positions(backbone.model).of_sequence(ids_1T[0], inputs), expected[:, 0])


def test_a_stored_folder_has_the_layout_of_the_whole_model(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    backbone, _ = loaded
    save_backbone(backbone, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen2_5_omni", ["Qwen2_5OmniModel"])
    assert config["enable_audio_output"] is False
    talker = config["talker_config"]
    ids = [value for name, value in talker.items() if name.endswith(("token_id", "token_index")) and value is not None]
    assert max(ids) < talker["vocab_size"], "transformers warns otherwise"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        norm = file.get_tensor("thinker.model.norm.weight")
    assert {name.split(".")[0] for name in names} == {"thinker"}
    assert {name.split(".")[1] for name in names} == {"model", "visual", "audio_tower", "lm_head"}
    assert torch.equal(norm, backbone.model.language_model.norm.weight)
    sent = {name for own, tensor in backbone.named_parameters() for name in stored_tensors(backbone, own, tensor)}
    assert sent == names
    again, _ = load_backbone_beside(tmp_path, loaded)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name]), name


def load_backbone_beside(folder: Path, loaded: tuple[Any, Any]) -> tuple[Any, Any]:
    loaded[1].save_pretrained(folder)
    return load_backbone(str(folder), torch.float32)


def test_tokens_of_all_media_are_banned(omni_folder: Path) -> None:
    """Their ids are in thinker_config, under names such as audio_token_index, and <|AUDIO|> is no image token."""
    tokenizer = AutoTokenizer.from_pretrained(omni_folder)
    banned = vision_token_ids(AutoConfig.from_pretrained(omni_folder), tokenizer)
    assert set(banned) == set(tokenizer.convert_tokens_to_ids(list(MEDIA_TOKENS.values())))


@pytest.mark.parametrize(("limits", "tokens"), [({}, 576), (PIXELS, 16), ({"max_pixels": 28 * 28}, 4)])
def test_frames_have_the_configured_size_and_not_that_of_the_processor_class(
    loaded: tuple[Any, Any], limits: dict[str, int], tokens: int
) -> None:
    """Qwen2.5-Omni's processor scales frames up to 128 · 28² pixels, whatever its checkpoint says. Two of the 8 frames
    are one row of tokens in time."""
    _, processor = loaded
    inputs = inputs_of(processor, (VIDEO,), limits)
    video = processor.tokenizer.convert_tokens_to_ids("<|VIDEO|>")
    assert int((inputs["input_ids"] == video).sum()) == tokens
    assert int(inputs["video_grid_thw"].prod()) == 4 * tokens


def test_every_parameter_belongs_to_one_part(loaded: tuple[Any, Any]) -> None:
    found: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, _ in loaded[0].named_parameters():
        (part,) = [part for part, pattern in PARTS.items() if re.search(pattern, name)]
        found[part] += 1
    assert all(found.values())


def test_features_are_ordered_by_their_tokens() -> None:
    ids = torch.tensor([[9, 2, 2, 1, 9, 3, 2, 1]])  # kinds 1, 2 and 3 have 2, 3 and 1 features
    assert feature_order(ids, (1, 2, 3)).tolist() == [2, 3, 0, 5, 4, 1]


def test_stand_ins_run_both_towers_without_changing_features(loaded: tuple[Any, Any]) -> None:
    backbone, processor = loaded
    media = {name: each for name, each in inputs_of(processor, (AUDIO,)).items() if name.startswith(("input_f", "fea"))}
    model = backbone.model
    (alone,) = model.get_image_features(**media).pooler_output
    (both,) = model.get_image_features(**with_stand_ins(media, stand_in_media(processor))).pooler_output
    assert torch.equal(alone, both)
    backbone.zero_grad()
    both.sum().backward()
    gradient = model.visual.merger.mlp[0].weight.grad
    assert gradient is not None
    assert not gradient.any()


@pytest.mark.parametrize("media", MEDIA.values(), ids=MEDIA)
def test_with_stand_ins_all_ranks_run_the_vision_tower_and_then_the_audio_tower(
    loaded: tuple[Any, Any], media: tuple[MediaRef, ...]
) -> None:
    """Under ZeRO-3, ranks that run the towers in another order, or one of them twice, wait for each other forever."""
    backbone, processor = loaded
    towers = (backbone.model.visual, backbone.model.audio_tower)
    ran: list[Any] = []
    hooks = [tower.register_forward_pre_hook(lambda tower, _: ran.append(tower)) for tower in towers]
    tensors = inputs_of(processor, media)
    tensors = {name: each for name, each in tensors.items() if name not in ("input_ids", "attention_mask")}
    backbone.model.get_image_features(**with_stand_ins(tensors, stand_in_media(processor)))
    for hook in hooks:
        hook.remove()
    assert ran == list(towers)


def test_audio_that_the_model_would_cut_is_refused(loaded: tuple[Any, Any]) -> None:
    long = encode_clip(None, np.zeros(16_000 * 9, np.float32))
    with pytest.raises(Exception, match=r"audio: takes 9\.0 s, but the model hears at most 8 s; cut the part"):
        processor_arguments(loaded[1], (AudioRef(data=long),), {})


def test_qwen3_omni_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_omni_moe"}))
    with pytest.raises(CheckpointError, match=r"must not be of type qwen3_omni_moe, because .*; use a Qwen2\.5-Omni"):
        load_backbone(str(tmp_path), torch.float32)
