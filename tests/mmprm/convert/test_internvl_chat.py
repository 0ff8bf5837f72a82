"""Older InternVL checkpoints become native ones: logits equal those of the older architecture, written out in torch.

Shapes: B solution or tile, T token, P patch, H hidden, N head, D head size, G key-value head.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from mmprm.cli.main import main
from mmprm.convert.internvl_chat import convert_internvl_chat, split_wqkv
from mmprm.errors import CheckpointError
from mmprm.prm.model import load_prm
from mmprm.types import Problem, Solution

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<prm>")
TEXT = "Question: Is 2+3=5? Process: Yes. No."
HEADS, GROUPS, VISION_HEADS, TILE, PATCH = 4, 2, 2, 28, 7


def old_config(language: str, rows: int, six_billion: bool, **changes: Any) -> dict[str, Any]:
    """A tiny config.json of the older form. `six_billion` has the norms of InternViT-6B, else those of -300M."""
    llm = {
        "architectures": [language],
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "hidden_act": "silu",
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    } | ({"bias": False} if language == "InternLM2ForCausalLM" else {})
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": VISION_HEADS,
        "image_size": TILE,
        "patch_size": PATCH,
        "qkv_bias": not six_billion,
        "qk_normalization": six_billion,
        "norm_type": "rms_norm" if six_billion else "layer_norm",
        "layer_norm_eps": 1e-6,
    }
    return {
        "model_type": "internvl_chat",
        "template": "internvl2_5",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "max_dynamic_patch": 4,
        "use_thumbnail": True,
        "force_image_size": TILE,
        "ps_version": "v2",
        "select_layer": -1,
        "torch_dtype": "float32",
        "llm_config": llm,
        "vision_config": vision,
    } | changes


def old_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under the older names."""
    torch.manual_seed(0)
    llm, vision = config["llm_config"], config["vision_config"]
    hidden, wide, rows = llm["hidden_size"], llm["intermediate_size"], llm["vocab_size"]
    seen, inner = vision["hidden_size"], vision["intermediate_size"]
    kv = hidden // HEADS * GROUPS
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, seen),
        "vision_model.embeddings.position_embedding": (1, (TILE // PATCH) ** 2 + 1, seen),
        "vision_model.embeddings.patch_embedding.weight": (seen, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": (seen,),
        "mlp1.0.weight": (4 * seen,),
        "mlp1.0.bias": (4 * seen,),
        "mlp1.1.weight": (hidden, 4 * seen),
        "mlp1.1.bias": (hidden,),
        "mlp1.3.weight": (hidden, hidden),
        "mlp1.3.bias": (hidden,),
    }
    for layer in range(vision["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{layer}."
        shapes |= {f"{at}attn.qkv.weight": (3 * seen, seen), f"{at}attn.proj.weight": (seen, seen)}
        shapes |= {f"{at}attn.proj.bias": (seen,), f"{at}ls1": (seen,), f"{at}ls2": (seen,)}
        shapes |= {f"{at}mlp.fc1.weight": (inner, seen), f"{at}mlp.fc1.bias": (inner,)}
        shapes |= {f"{at}mlp.fc2.weight": (seen, inner), f"{at}mlp.fc2.bias": (seen,)}
        shapes |= {f"{at}norm1.weight": (seen,), f"{at}norm2.weight": (seen,)}
        if vision["norm_type"] == "layer_norm":
            shapes |= {f"{at}norm1.bias": (seen,), f"{at}norm2.bias": (seen,)}
        if vision["qkv_bias"]:
            shapes[f"{at}attn.qkv.bias"] = (3 * seen,)
        if vision["qk_normalization"]:
            shapes |= {f"{at}attn.q_norm.weight": (seen,), f"{at}attn.k_norm.weight": (seen,)}
    for layer in range(llm["num_hidden_layers"]):
        at = f"language_model.model.layers.{layer}."
        if llm["architectures"][0] == "InternLM2ForCausalLM":
            shapes |= {f"{at}attention.wqkv.weight": (hidden + 2 * kv, hidden)}
            shapes |= {f"{at}attention.wo.weight": (hidden, hidden), f"{at}feed_forward.w1.weight": (wide, hidden)}
            shapes |= {f"{at}feed_forward.w2.weight": (hidden, wide), f"{at}feed_forward.w3.weight": (wide, hidden)}
            shapes |= {f"{at}attention_norm.weight": (hidden,), f"{at}ffn_norm.weight": (hidden,)}
        else:
            for kind, size in (("q", hidden), ("k", kv), ("v", kv)):
                shapes[f"{at}self_attn.{kind}_proj.weight"] = (size, hidden)
                shapes[f"{at}self_attn.{kind}_proj.bias"] = (size,)
            shapes |= {f"{at}self_attn.o_proj.weight": (hidden, hidden), f"{at}mlp.gate_proj.weight": (wide, hidden)}
            shapes |= {f"{at}mlp.down_proj.weight": (hidden, wide), f"{at}mlp.up_proj.weight": (wide, hidden)}
            shapes |= {f"{at}input_layernorm.weight": (hidden,), f"{at}post_attention_layernorm.weight": (hidden,)}
    shapes["language_model.model.norm.weight"] = (hidden,)
    first, last = (
        ("tok_embeddings", "output")
        if llm["architectures"][0] == "InternLM2ForCausalLM"
        else ("embed_tokens", "lm_head")
    )
    shapes |= {f"language_model.model.{first}.weight": (rows, hidden), f"language_model.{last}.weight": (rows, hidden)}
    weights = {name: torch.randn(shape) / math.sqrt(shape[-1]) for name, shape in shapes.items()}
    return {name: tensor + 1 if tensor.ndim == 1 and "bias" not in name else tensor for name, tensor in weights.items()}


@torch.no_grad()
def old_logits(weights: dict[str, Tensor], config: dict[str, Any], input_ids_T: Tensor, tiles: Tensor) -> Tensor:
    """The older forward: InternViT, pixel shuffle v2, mlp1, language model. → logits_TV."""
    llm = config["llm_config"]
    internlm2 = llm["architectures"][0] == "InternLM2ForCausalLM"
    table = weights[f"language_model.model.{'tok_embeddings' if internlm2 else 'embed_tokens'}.weight"]
    hidden_TH = table[input_ids_T]
    hidden_TH[input_ids_T == config["image_token_id"]] = old_images(weights, config, tiles).flatten(0, 1)
    for layer in range(llm["num_hidden_layers"]):
        hidden_TH = old_layer(weights, f"language_model.model.layers.{layer}.", llm, internlm2, hidden_TH)
    hidden_TH = rms_norm(hidden_TH, weights["language_model.model.norm.weight"], llm["rms_norm_eps"])
    return hidden_TH @ weights[f"language_model.{'output' if internlm2 else 'lm_head'}.weight"].T


def old_layer(weights: dict[str, Tensor], at: str, llm: dict[str, Any], internlm2: bool, hidden_TH: Tensor) -> Tensor:
    tokens, size = len(hidden_TH), llm["hidden_size"] // HEADS
    norms = ("attention_norm", "ffn_norm") if internlm2 else ("input_layernorm", "post_attention_layernorm")
    inner_TH = rms_norm(hidden_TH, weights[f"{at}{norms[0]}.weight"], llm["rms_norm_eps"])
    if internlm2:
        fused = linear(inner_TH, weights[f"{at}attention.wqkv.weight"])
        fused = fused.view(tokens, GROUPS, HEADS // GROUPS + 2, size)
        q_TND, k_TGD, v_TGD = fused[:, :, :-2].flatten(1, 2), fused[:, :, -2], fused[:, :, -1]
    else:
        q_TND, k_TGD, v_TGD = (
            linear(inner_TH, weights[f"{at}self_attn.{kind}_proj.weight"], weights[f"{at}self_attn.{kind}_proj.bias"])
            .view(tokens, -1, size)
            .clone()
            for kind in "qkv"
        )
    cos_TD, sin_TD = dynamic_rotation(llm, tokens, size)
    q_TND, k_TGD = (x * cos_TD[:, None] + half_turned(x) * sin_TD[:, None] for x in (q_TND, k_TGD))
    k_TND, v_TND = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k_TGD, v_TGD))
    scores_NTT = torch.einsum("qnd,knd->nqk", q_TND, k_TND) / math.sqrt(size)
    scores_NTT = scores_NTT.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
    mixed_TH = torch.einsum("nqk,knd->qnd", scores_NTT.softmax(-1), v_TND).flatten(1)
    hidden_TH = hidden_TH + linear(
        mixed_TH, weights[f"{at}{'attention.wo' if internlm2 else 'self_attn.o_proj'}.weight"]
    )
    inner_TH = rms_norm(hidden_TH, weights[f"{at}{norms[1]}.weight"], llm["rms_norm_eps"])
    gate, down, up = (
        (f"feed_forward.{name}" for name in ("w1", "w2", "w3"))
        if internlm2
        else (f"mlp.{name}" for name in ("gate_proj", "down_proj", "up_proj"))
    )
    wide = silu(linear(inner_TH, weights[f"{at}{gate}.weight"])) * linear(inner_TH, weights[f"{at}{up}.weight"])
    return hidden_TH + linear(wide, weights[f"{at}{down}.weight"])


def dynamic_rotation(llm: dict[str, Any], tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """Dynamic NTK: beyond the trained length the base grows with the sequence."""
    base, trained, factor = llm["rope_theta"], llm["max_position_embeddings"], llm["rope_scaling"]["factor"]
    if tokens > trained:
        base *= (factor * tokens / trained - (factor - 1)) ** (size / (size - 2))
    angles = torch.outer(torch.arange(tokens).float(), base ** -(torch.arange(0, size, 2).float() / size))
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def old_images(weights: dict[str, Tensor], config: dict[str, Any], tiles: Tensor) -> Tensor:
    """Tiles B×3×TILE×TILE → what stands at their tokens, B × 4 × H."""
    vision, at = config["vision_config"], "vision_model.embeddings."
    size = vision["hidden_size"] // VISION_HEADS
    patches = torch.nn.functional.conv2d(
        tiles, weights[f"{at}patch_embedding.weight"], weights[f"{at}patch_embedding.bias"], stride=PATCH
    )
    patches_BPH = patches.flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"{at}class_embedding"].expand(len(tiles), 1, -1), patches_BPH], dim=1)
    x = x + weights[f"{at}position_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        if vision["norm_type"] == "rms_norm":
            return rms_norm(x, weights[f"{name}.weight"], 1e-6)
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    for layer in range(vision["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{layer}."
        fused = linear(norm(x, f"{at}norm1"), weights[f"{at}attn.qkv.weight"], weights.get(f"{at}attn.qkv.bias"))
        q, k, v = fused.view(*x.shape[:2], 3, -1).unbind(2)
        if vision["qk_normalization"]:
            q, k = (rms_norm(y, weights[f"{at}attn.{n}_norm.weight"], 1e-6) for y, n in ((q, "q"), (k, "k")))
        q, k, v = (y.view(*y.shape[:2], VISION_HEADS, size) for y in (q, k, v))
        mixed = torch.einsum(
            "bnqk,bknd->bqnd", (torch.einsum("bqnd,bknd->bnqk", q, k) / math.sqrt(size)).softmax(-1), v
        )
        mixed = linear(mixed.flatten(2), weights[f"{at}attn.proj.weight"], weights[f"{at}attn.proj.bias"])
        x = x + mixed * weights[f"{at}ls1"]
        wide = gelu(linear(norm(x, f"{at}norm2"), weights[f"{at}mlp.fc1.weight"], weights[f"{at}mlp.fc1.bias"]))
        x = x + linear(wide, weights[f"{at}mlp.fc2.weight"], weights[f"{at}mlp.fc2.bias"]) * weights[f"{at}ls2"]
    side = TILE // PATCH
    x = x[:, 1:].view(len(tiles), side, side, -1)  # rows, columns of patches
    # Pixel shuffle v2: a token is a square of 2 × 2 patches, row after row; its channels are those of the four.
    x = torch.stack([x[:, r::2, c::2] for r in (0, 1) for c in (0, 1)], dim=3).flatten(3).flatten(1, 2)
    x = layer_norm(x, x.shape[-1:], weights["mlp1.0.weight"], weights["mlp1.0.bias"], 1e-5)
    x = gelu(linear(x, weights["mlp1.1.weight"], weights["mlp1.1.bias"]))
    return linear(x, weights["mlp1.3.weight"], weights["mlp1.3.bias"])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def write_qwen2_tokenizer(folder: Path) -> dict[str, int]:
    """Bytes and two words; → ids of the added tokens."""
    symbols = [*sorted(ByteLevel.alphabet()), "Ye", "Yes", "No"]
    ids = {token: len(symbols) + position for position, token in enumerate(("<|endoftext|>", *SPECIAL))}
    (folder / "vocab.json").write_text(json.dumps({symbol: position for position, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\nY e\nYe s\nN o\n")
    entries = {str(position): {"content": token, "special": True} for token, position in ids.items()}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": entries, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|endoftext|>"}))
    return ids


def write_internlm2_tokenizer(folder: Path) -> dict[str, int]:
    """A SentencePiece file, two of whose unused pieces became turn tokens; the others come after it."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, "Yes", "No", "Yes", "No", "step by step, 12 + 30 = 42"] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]"],
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    start = pieces.piece_to_id("[UNUSED_TOKEN_0]")
    ids = {"<|im_start|>": start, "<|im_end|>": start + 1}
    ids |= {token: len(pieces) + position for position, token in enumerate(SPECIAL[2:])}
    late = {token: position for token, position in ids.items() if position >= len(pieces)}
    (folder / "added_tokens.json").write_text(json.dumps(late))
    entries = {str(position): {"content": token, "special": True} for token, position in ids.items()}
    settings = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": {"AutoTokenizer": ["tokenization_internlm2.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": entries}))
    return ids


TOKENIZERS = {"InternLM2ForCausalLM": write_internlm2_tokenizer, "Qwen2ForCausalLM": write_qwen2_tokenizer}


def write_old(folder: Path, language: str, six_billion: bool, **changes: Any) -> dict[str, Any]:
    """An older folder in two files, as the large ones are; → its config.json with `image_token_id`."""
    folder.mkdir()
    ids = TOKENIZERS[language](folder)
    config = old_config(language, max(ids.values()) + 1, six_billion, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    weights = old_weights(config)
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return config | {"image_token_id": ids["<IMG_CONTEXT>"]}


def read_old(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model-1.safetensors") | load_file(folder / "model-2.safetensors")


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
    for text in ("<IMG_CONTEXT>Yes", f"<IMG_CONTEXT>\n{TEXT}"):  # within the trained length of 32, and beyond it
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        assert len(inputs["pixel_values"]) == 4, "three tiles and the thumbnail"
        assert (inputs["input_ids"] == config["image_token_id"]).sum() == 16
        assert (inputs["input_ids"].shape[1] > 32) == (TEXT in text)
        expected_TV = old_logits(read_old(tmp_path / "old"), config, inputs["input_ids"][0], inputs["pixel_values"])
        assert expected_TV.std() > 0.1
        torch.testing.assert_close(model(**inputs).logits[0], expected_TV, rtol=0, atol=1e-5)


def test_tiles_are_pieces_of_the_image(tmp_path: Path) -> None:
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
def test_a_tokenizer_with_prm_gives_a_prm_in_the_older_prompt(language: str, start: str, tmp_path: Path) -> None:
    """The prompt of MM-PRM's evaluation: an empty user turn has no end; InternLM2 begins with its start token."""
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
    """Two groups of two query heads, head size 1: rows q q k v | q q k v."""
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
def test_what_the_native_class_cannot_hold_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_old(tmp_path / "old", "Qwen2ForCausalLM", False, **changes)
    with pytest.raises(CheckpointError, match=reason):
        convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if "new" in path.name], "nothing is left behind"


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


def test_an_existing_target_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_old(tmp_path / "old", "Qwen2ForCausalLM", False)
    (tmp_path / "new").mkdir()
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_prm_in_another_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A converted MM-PRM checkpoint is one of ours, and can be written again as one of MM-PRM's tokens only."""
    write_old(tmp_path / "old", "InternLM2ForCausalLM", False)
    convert_internvl_chat(tmp_path / "old", tmp_path / "new")
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "own"), "--format", "mm-prm"]) == 0
    first, second = (load_prm(tmp_path / name).model.state_dict() for name in ("new", "own"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "trl"), "--format", "trl"]) == 2
    assert "reads images" in capsys.readouterr().err
