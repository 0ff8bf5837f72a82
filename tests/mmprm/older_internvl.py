"""Write small checkpoints of the older InternVL class, and compute their logits in torch.

Shapes: B solution or tile, T token, P patch, H hidden, N head, D head size, G key-value head.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"

SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<prm>")

TEXT = "Question: Is 2+3=5? Process: Yes. No."

HEADS, GROUPS, VISION_HEADS, TILE, PATCH = 4, 2, 2, 28, 7


def old_config(language: str, rows: int, six_billion: bool, **changes: Any) -> dict[str, Any]:
    """Return a tiny config.json of the older format, with the norms of InternViT-6B if `six_billion`, else of
    InternViT-300M.
    """
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
    """Return random weights under the older names."""
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
    """Return logits_TV of the older architecture: InternViT, pixel shuffle v2, mlp1, and language model."""
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
    """Return dynamic NTK rotary angles: beyond the trained length, the base grows with the sequence."""
    base, trained, factor = llm["rope_theta"], llm["max_position_embeddings"], llm["rope_scaling"]["factor"]
    if tokens > trained:
        base *= (factor * tokens / trained - (factor - 1)) ** (size / (size - 2))
    angles = torch.outer(torch.arange(tokens).float(), base ** -(torch.arange(0, size, 2).float() / size))
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def old_images(weights: dict[str, Tensor], config: dict[str, Any], tiles: Tensor) -> Tensor:
    """Map tiles (B × 3 × TILE × TILE) to the features of their tokens (B × 4 × H)."""
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
    # Pixel shuffle v2: a token is a 2 × 2 square of patches in row-major order, with their channels concatenated.
    x = torch.stack([x[:, r::2, c::2] for r in (0, 1) for c in (0, 1)], dim=3).flatten(3).flatten(1, 2)
    x = layer_norm(x, x.shape[-1:], weights["mlp1.0.weight"], weights["mlp1.0.bias"], 1e-5)
    x = gelu(linear(x, weights["mlp1.1.weight"], weights["mlp1.1.bias"]))
    return linear(x, weights["mlp1.3.weight"], weights["mlp1.3.bias"])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def write_qwen2_tokenizer(folder: Path) -> dict[str, int]:
    """Write a tokenizer of all bytes and two words; return the ids of the added tokens."""
    symbols = [*sorted(ByteLevel.alphabet()), "Ye", "Yes", "No"]
    ids = {token: len(symbols) + position for position, token in enumerate(("<|endoftext|>", *SPECIAL))}
    (folder / "vocab.json").write_text(json.dumps({symbol: position for position, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\nY e\nYe s\nN o\n")
    entries = {str(position): {"content": token, "special": True} for token, position in ids.items()}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": entries, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|endoftext|>"}))
    return ids


def write_internlm2_tokenizer(folder: Path) -> dict[str, int]:
    """Write a SentencePiece model in which two unused pieces are turn tokens; other added tokens follow."""
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
    """Write an older checkpoint split into two files; return its config.json with `image_token_id`."""
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
