"""Provide the parts of the tiny random models: sizes, tokenizers, and text and vision configurations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from mmprm.tiny.image import CELL
from mmprm.tiny.tokenizer import CHAT_TEMPLATE, END, PAD, WORDS

SPARE_TOKENS = 8
HIDDEN, HEAD = 64, 32
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def image_shape() -> dict[str, Any]:
    """Return image processor settings with one token per cell of the toy world's images."""
    pixels = {"shortest_edge": CELL * CELL, "longest_edge": 64 * CELL * CELL}
    return {"size": pixels, "patch_size": CELL // 2, "merge_size": 2, "temporal_patch_size": 2}


def text_config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer) + SPARE_TOKENS,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
        **more,
    }


def mrope_config(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6], **more}
    return {"rope_parameters": rope, "tie_word_embeddings": False}


def vision_token_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def byte_level_tokenizer(kind: Any = Qwen2Tokenizer, special: Sequence[str] = ()) -> Any:
    """Train a byte-level tokenizer on a few words.

    transformers reads Qwen text and Qwen3.5 folders with a byte-level tokenizer, whatever class wrote them.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(["system user assistant Yes No", *WORDS] * 5, trainer)
    bpe = json.loads(trained.to_str())["model"]
    tokenizer = kind(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=["<|im_start|>", *special],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
