"""List shapes of published models from their config.json, for planning without their files.

Sources: huggingface.co/OpenGVLab/InternVL3-8B, InternVL3-38B, InternVL2_5-8B, InternVL2_5-78B (vision towers
InternViT-300M-448px and InternViT-6B-448px-V2_5; language models Qwen2.5-7B, -32B, -72B and InternLM2.5-7B) and
huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, Qwen2.5-VL-72B-Instruct.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

_QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
_QWEN_32B = {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40}
_QWEN_72B = {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64}
_INTERNLM_7B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}

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


def _internvl(
    text: dict[str, int], key_value_heads: int, rows: int, vision: dict[str, Any], kind: str = "qwen2"
) -> dict[str, Any]:
    text_config = {**text, "num_key_value_heads": key_value_heads, "vocab_size": rows, "tie_word_embeddings": False}
    return {
        "model_type": "internvl",
        "text_config": {"model_type": kind, **text_config},
        "vision_config": vision,
        "tie_word_embeddings": False,
    }


def _qwen2_5_vl(text: dict[str, int], key_value_heads: int, vision_intermediate: int) -> dict[str, Any]:
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": vision_intermediate}
    text_config = {**text, "num_key_value_heads": key_value_heads, "vocab_size": 152064, "tie_word_embeddings": False}
    return {
        "model_type": "qwen2_5_vl",
        "text_config": text_config,
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
        "tie_word_embeddings": False,
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "InternVL2_5-8B": _internvl(_INTERNLM_7B, 8, 92553, _VIT_300M, kind="llama"),
    "InternVL3-8B": _internvl(_QWEN_7B, 4, 151674, _VIT_300M),
    "InternVL3-38B": _internvl(_QWEN_32B, 8, 151674, _VIT_6B),
    "InternVL2_5-78B": _internvl(_QWEN_72B, 8, 151674, _VIT_6B),
    "Qwen2.5-VL-7B-Instruct": _qwen2_5_vl(_QWEN_7B, 4, 3420),
    "Qwen2.5-VL-72B-Instruct": _qwen2_5_vl(_QWEN_72B, 8, 3456),
}


def published(base: str) -> dict[str, Any] | None:
    """Return the shape by the last part of a hub id or folder, with or without `-hf`; None if it is not listed."""
    return ARCHITECTURES.get(PurePosixPath(base).name.removesuffix("-hf"))
