"""List the config.json values of published models, so that runs can be planned without downloading a model.

Sources: huggingface.co/OpenGVLab (InternVL2_5-8B, -38B, -78B, InternVL3-8B, -38B; vision towers InternViT-300M-448px
and InternViT-6B-448px-V2_5; language models InternLM2.5-7B, Qwen2.5-7B, -32B, -72B) and huggingface.co/Qwen
(Qwen2-VL-2B, Qwen2.5-VL-3B, -7B, -32B, -72B, Qwen2.5-32B, Qwen3-VL-8B, -32B, -30B-A3B, Qwen2.5-Omni-3B, -7B).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any


def _text(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 32768,
    }


_QWEN_2B = _text(1536, 8960, 28, 12, 2)
_QWEN_3B = _text(2048, 11008, 36, 16, 2)
_QWEN_7B = _text(3584, 18944, 28, 28, 4)
_QWEN_32B = _text(5120, 27648, 64, 40, 8)
_QWEN_72B = _text(8192, 29568, 80, 64, 8)
_INTERNLM_7B = _text(4096, 14336, 32, 32, 8)
_QWEN3_8B = _text(4096, 12288, 36, 32, 8)
_QWEN3_32B = _text(5120, 25600, 64, 64, 8)
_QWEN3_30B_A3B = _text(2048, 6144, 48, 32, 4) | {
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}

_VIT_300M = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": True,
}
_VIT_6B = {
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "norm_type": "rms_norm",
    "use_qk_norm": True,
}


def _internvl(text: dict[str, Any], rows: int, vision: dict[str, Any], kind: str = "qwen2") -> dict[str, Any]:
    return {
        "model_type": "internvl",
        "text_config": {"model_type": kind, **text, "vocab_size": rows, "tie_word_embeddings": False},
        "vision_config": vision,
        "tie_word_embeddings": False,
    }


def _qwen_vl(
    kind: str, text: dict[str, Any], rows: int, vision: dict[str, Any], context: int, tied: bool = False
) -> dict[str, Any]:
    own = {"vocab_size": rows, "max_position_embeddings": context, "tie_word_embeddings": tied}
    return {"model_type": kind, "text_config": text | own, "vision_config": vision, "tie_word_embeddings": tied}


def _qwen2_vl(text: dict[str, Any]) -> dict[str, Any]:
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": text["hidden_size"]}
    return _qwen_vl("qwen2_vl", text, 151936, vision, 32768, tied=True)


def _qwen2_5_vl(text: dict[str, Any], intermediate: int, rows: int = 152064, tied: bool = False) -> dict[str, Any]:
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": intermediate}
    vision["out_hidden_size"] = text["hidden_size"]
    return _qwen_vl("qwen2_5_vl", text, rows, vision, 128000, tied)


def _qwen3_vl(text: dict[str, Any], kind: str = "qwen3_vl") -> dict[str, Any]:
    vision = {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304}
    vision["out_hidden_size"] = text["hidden_size"]
    return _qwen_vl(kind, text | {"head_dim": 128}, 151936, vision, 262144)


def _qwen2_5_omni(text: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the values of Qwen2.5-Omni. Its towers have transformers' default sizes, except for their output."""
    own = {"vocab_size": rows, "tie_word_embeddings": False}
    thinker = {
        "text_config": text | own,
        "vision_config": {"hidden_size": 1280, "out_hidden_size": text["hidden_size"]},
        "audio_config": {"output_dim": text["hidden_size"]},
        "tie_word_embeddings": False,
    }
    return {"model_type": "qwen2_5_omni", "thinker_config": thinker, "enable_audio_output": False}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "InternVL2_5-8B": _internvl(_INTERNLM_7B, 92553, _VIT_300M, kind="llama"),
    "InternVL2_5-38B": _internvl(_QWEN_32B, 151674, _VIT_6B),
    "InternVL2_5-38B-Pretrained": _internvl(_QWEN_32B, 151674, _VIT_6B),
    "InternVL2_5-78B": _internvl(_QWEN_72B, 151674, _VIT_6B),
    "InternVL3-8B": _internvl(_QWEN_7B, 151674, _VIT_300M),
    "InternVL3-38B": _internvl(_QWEN_32B, 151674, _VIT_6B),
    "Qwen2-VL-2B": _qwen2_vl(_QWEN_2B),
    "Qwen2-VL-2B-Instruct": _qwen2_vl(_QWEN_2B),
    "Qwen2.5-VL-3B-Instruct": _qwen2_5_vl(_QWEN_3B, 3420, rows=151936, tied=True),
    "Qwen2.5-VL-7B-Instruct": _qwen2_5_vl(_QWEN_7B, 3420),
    "Qwen2.5-VL-32B-Instruct": _qwen2_5_vl(_QWEN_32B, 3456),
    "Qwen2.5-VL-72B-Instruct": _qwen2_5_vl(_QWEN_72B, 3456),
    "Qwen2.5-Omni-3B": _qwen2_5_omni(_QWEN_3B, 151936),
    "Qwen2.5-Omni-7B": _qwen2_5_omni(_QWEN_7B, 152064),
    "Qwen2.5-32B": _QWEN_32B
    | {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 131072, "tie_word_embeddings": False},
    "Qwen3-VL-8B-Instruct": _qwen3_vl(_QWEN3_8B),
    "Qwen3-VL-32B-Instruct": _qwen3_vl(_QWEN3_32B),
    "Qwen3-VL-30B-A3B-Instruct": _qwen3_vl(_QWEN3_30B_A3B, "qwen3_vl_moe"),
}


def published(base: str) -> dict[str, Any] | None:
    """Look up the config.json values of a published model by its hub id or path, or return None if it is unknown. Only
    the last part of the id or path counts.

    The suffix `-hf` is ignored.
    """
    return ARCHITECTURES.get(PurePosixPath(base).name.removesuffix("-hf"))
