"""Test that older InternVL checkpoints are converted to native ones with equal logits (see older_internvl.py).

Shapes: B solution or tile, T token, P patch, H hidden, N head, D head size, G key-value head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from older_internvl import SYSTEM, TEXT, TILE, TOKENIZERS, old_logits, read_old, write_old
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from mmprm.cli.main import main
from mmprm.convert.internvl_chat import convert_internvl_chat, split_wqkv
from mmprm.errors import CheckpointError
from mmprm.prm.model import load_prm
from mmprm.types import Problem, Solution


@pytest.mark.parametrize("six_billion", [False, True], ids=["300M", "6B"])
@pytest.mark.parametrize("language", TOKENIZERS)
@torch.no_grad()
def test_logits_equal_those_of_the_older_architecture(language: str, six_billion: bool, tmp_path: Path) -> None:
    config = write_old(tmp_path / "old", language, six_billion)
    convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) == 2
    processor = AutoProcessor.from_pretrained(tmp_path / "new")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "new", attn_implementation="eager").eval()
    image = Image.effect_noise((3 * TILE, TILE), 90).convert("RGB")
    for text in ("<IMG_CONTEXT>Yes", f"<IMG_CONTEXT>\n{TEXT}"):  # within the trained length of 32, and beyond
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        assert len(inputs["pixel_values"]) == 4, "three tiles and the thumbnail"
        assert (inputs["input_ids"] == config["image_token_id"]).sum() == 16
        assert (inputs["input_ids"].shape[1] > 32) == (TEXT in text)
        expected_TV = old_logits(read_old(tmp_path / "old"), config, inputs["input_ids"][0], inputs["pixel_values"])
        assert expected_TV.std() > 0.1
        torch.testing.assert_close(model(**inputs).logits[0], expected_TV, rtol=0, atol=1e-5)


def test_tiles_are_crops_of_the_image(tmp_path: Path) -> None:
    write_old(tmp_path / "old", "Qwen2ForCausalLM", False)
    convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    processor = AutoProcessor.from_pretrained(tmp_path / "new")
    image = Image.effect_noise((2 * TILE, TILE), 90).convert("RGB")
    tiles = processor.image_processor(images=[image], crop_to_patches=True, return_tensors="pt")["pixel_values"]
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(TILE, 2 * TILE, 3) / 255
    expected = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    left, right = expected.permute(2, 0, 1).chunk(2, dim=2)
    torch.testing.assert_close(tiles[:2], torch.stack([left, right]), atol=1e-5, rtol=0)


def test_a_sentencepiece_tokenizer_keeps_its_tokens(tmp_path: Path) -> None:
    import sentencepiece

    write_old(tmp_path / "old", "InternLM2ForCausalLM", False)
    convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "new").tokenizer
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "old" / "tokenizer.model"))
    for text in (TEXT, "  two  spaces", "Yes", "step 12", "süß 你好\n\ttab", " No"):
        assert tokenizer.encode(text, add_special_tokens=False) == pieces.encode(text), text
        assert tokenizer.decode(pieces.encode(text)) == text
    ids = json.loads((tmp_path / "old" / "added_tokens.json").read_text())
    start = pieces.piece_to_id("[UNUSED_TOKEN_0]")
    assert tokenizer.encode("<|im_start|>Yes<prm>") == [start, pieces.piece_to_id("Yes"), ids["<prm>"]]


@pytest.mark.parametrize(("language", "start"), [("InternLM2ForCausalLM", "<s>"), ("Qwen2ForCausalLM", "")])
def test_a_tokenizer_with_a_prm_token_gives_a_prm_with_the_older_prompt(
    language: str, start: str, tmp_path: Path
) -> None:
    """In MM-PRM's evaluation prompt, an empty user turn has no end token; InternLM2 starts with its start token."""
    write_old(tmp_path / "old", language, False)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    prm = load_prm(tmp_path / "new")
    problem = Problem("p", "2+3", "5")
    head = f"{start}<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n"
    text = prm.renderer.render(Solution(problem, ("2+3=5", "Yes")))
    assert text == f"{head}Question: 2+3\nProcess: 2+3=5<prm>Yes<prm><|im_end|>\n"
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    prompt = prm.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    asked = "<|im_start|>user\n<IMG_CONTEXT>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == f"{start}<|im_start|>system\n{SYSTEM}<|im_end|>\n{asked}"


@torch.no_grad()
def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    config = write_old(tmp_path / "old", "Qwen2ForCausalLM", False)
    config["llm_config"]["tie_word_embeddings"] = True
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "new")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    torch.testing.assert_close(
        model.lm_head.weight, read_old(tmp_path / "old")["language_model.model.embed_tokens.weight"]
    )


def test_fused_heads_by_hand() -> None:
    """Two groups of two query heads with head size 1 are stored as rows q q k v | q q k v."""
    config = LlamaConfig(hidden_size=4, num_attention_heads=4, num_key_value_heads=2)
    query, key, value = split_wqkv(torch.arange(8.0)[:, None], config)
    assert [part.flatten().tolist() for part in (query, key, value)] == [[0, 1, 4, 5], [2, 6], [3, 7]]
    assert [part.tolist() for part in split_wqkv(torch.arange(8.0), config)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "internvl"}, "need no conversion"),
        ({"ps_version": "v1"}, "ps_version='v1' must be 'v2'"),
        ({"select_layer": -4}, "select_layer=-4"),
        ({"use_llm_lora": 16}, "use_llm_lora=16"),
        ({"template": "phi3-chat"}, "template='phi3-chat'"),
        ({"use_thumbnail": False}, "use_thumbnail"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_features_without_native_equivalent_are_rejected(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_old(tmp_path / "old", "Qwen2ForCausalLM", False, **changes)
    with pytest.raises(CheckpointError, match=reason):
        convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if "new" in path.name], "no partial output remains"


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_old(old, "Qwen2ForCausalLM", False)

    def refused(reason: str) -> None:
        with pytest.raises(CheckpointError, match=reason):
            convert_internvl_chat(old, new)
        assert not new.exists()

    first = old / "model-1.safetensors"
    whole, tensors = first.read_bytes(), load_file(first)
    first.write_bytes(whole[:-8])
    refused("not a whole safetensors file")
    save_file({name: tensor for name, tensor in tensors.items() if "mlp1" not in name}, first)
    refused(r"lacks \d weights, for example model.multi_modal_projector")
    save_file(tensors | {"mlp1.0.bias": torch.zeros(3), "mlp1.0.weight": torch.zeros(3)}, first)
    refused(r"has shape \(3,\), but according to config.json it must have \(64,\)")
    save_file(tensors | {"language_model.base_model.model.x": torch.zeros(3)}, first)
    refused("merge adapters")
    first.unlink()
    (old / "pytorch_model.bin").touch()
    refused("pickles")
    first.write_bytes(whole)
    settings = json.loads((old / "tokenizer_config.json").read_text())
    whole_entries = settings["added_tokens_decoder"]
    settings["added_tokens_decoder"] = whole_entries | {"400": {"content": "<prm>", "special": True}}
    (old / "tokenizer_config.json").write_text(json.dumps(settings))
    refused("from the same model")
    settings["added_tokens_decoder"] = {k: v for k, v in whole_entries.items() if v["content"] != "<img>"}
    (old / "tokenizer_config.json").write_text(json.dumps(settings))
    refused("the tokenizer lacks <img>")
    (old / "config.json").unlink()
    refused("config.json: cannot be read")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"model_type": "internvl_chat"}'])
def test_a_foreign_configuration_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: cannot be loaded as a model"):
        convert_internvl_chat(tmp_path, tmp_path / "new")


def test_an_existing_target_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_old(tmp_path / "old", "Qwen2ForCausalLM", False)
    (tmp_path / "new").mkdir()
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_prm_in_another_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A converted MM-PRM checkpoint can be exported again to the mm-prm format only."""
    write_old(tmp_path / "old", "InternLM2ForCausalLM", False)
    convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "own"), "--format", "mm-prm"]) == 0
    first, second = (load_prm(tmp_path / name).model.state_dict() for name in ("new", "own"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "trl"), "--format", "trl"]) == 2
    assert "reads images" in capsys.readouterr().err
