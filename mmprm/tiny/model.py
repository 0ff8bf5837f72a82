"""Define the tiny policy's architecture, a Qwen2.5-VL with about a million parameters, and locate its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmprm.tiny.tokenizer import END, PAD

SPARE_TOKENS = 16
"""Number of spare embedding rows, so that adding a few tokens (such as a PRM's step marker) needs no resizing."""

POSITIONS = 1024
HIDDEN = 128


def weights_path() -> Path:
    """Return the folder of the trained policy that ships with the package."""
    return Path(__file__).parent / "weights"


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Build the model with random weights, drawn from torch's global random state.

    The head size is 32, because vLLM's CPU attention supports it.
    """
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=text_settings(tokenizer),
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "out_hidden_size": HIDDEN,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = generation_settings(tokenizer)
    return model


def text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the configuration of the tiny policies' language model."""
    return {
        "vocab_size": len(tokenizer) + SPARE_TOKENS,
        "hidden_size": HIDDEN,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
        "tie_word_embeddings": False,
    }


def generation_settings(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    return GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        do_sample=True,
        temperature=1.0,
        max_new_tokens=96,
    )
