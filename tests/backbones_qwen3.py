"""Build tiny random models of the Qwen3 and Qwen3.5 families, dense and mixture-of-experts."""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedModel,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from mmprm.tiny.tokenizer import CHAT_TEMPLATE, build_tokenizer
from tests.backbone_parts import (
    HEAD,
    HIDDEN,
    QWEN_VISION,
    VISION_TOKENS,
    byte_level_tokenizer,
    image_shape,
    mrope_config,
    text_config,
    vision_token_config,
)

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
"""No two dimensions of a layer's experts are equal: a transposed tensor has another shape."""
DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {
    **QWEN_VISION,
    "hidden_size": HIDDEN,
    "out_hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_position_embeddings": 64,
}


def qwen3_vl() -> tuple[PreTrainedModel, Any]:
    """Build a Qwen3-VL. Features of one vision layer are added to the language model again (deepstack)."""
    return _vision_language(Qwen3VLConfig, Qwen3VLForConditionalGeneration, build_tokenizer())


def qwen3_vl_moe() -> tuple[PreTrainedModel, Any]:
    """Build a Qwen3-VL-MoE. Published configurations have norm_topk_prob, which vLLM reads and transformers
    does not.
    """
    experts = {**EXPERTS, "norm_topk_prob": True}
    return _vision_language(Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, build_tokenizer(), **experts)


def _vision_language(config: Any, model: Any, tokenizer: Any, **text: Any) -> tuple[PreTrainedModel, Any]:
    settings = config(
        text_config=text_config(tokenizer, head_dim=HEAD, **mrope_config(mrope_interleaved=True), **text),
        vision_config={**VISION, "deepstack_visual_indexes": [0]},
        **vision_token_config(tokenizer),
        tie_word_embeddings=False,
    )
    return model(settings), _processor(tokenizer)


def qwen3_5() -> tuple[PreTrainedModel, Any]:
    """Build a Qwen3.5 with a gated delta-net layer and an attention layer."""
    return _hybrid(Qwen3_5Config, Qwen3_5ForConditionalGeneration)


def qwen3_5_moe() -> tuple[PreTrainedModel, Any]:
    shared = {"shared_expert_intermediate_size": 32}
    return _hybrid(Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, **EXPERTS, **shared)


def _hybrid(config: Any, model: Any, **text: Any) -> tuple[PreTrainedModel, Any]:
    tokenizer = byte_level_tokenizer(Qwen3_5Tokenizer, VISION_TOKENS)
    rope = mrope_config(mrope_interleaved=True, mrope_section=[4, 2, 2], partial_rotary_factor=0.5)
    settings = config(
        text_config=text_config(tokenizer, head_dim=HEAD, **DELTA_NET, **rope, **text),
        vision_config=VISION,
        **vision_token_config(tokenizer),
        tie_word_embeddings=False,
    )
    return model(settings), _processor(tokenizer)


def _processor(tokenizer: Any) -> Qwen3VLProcessor:
    shape = image_shape()
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**shape),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**shape),
        chat_template=CHAT_TEMPLATE,
    )


def qwen3() -> tuple[PreTrainedModel, Any]:
    tokenizer = byte_level_tokenizer()
    config = Qwen3Config(**text_config(tokenizer, head_dim=HEAD, tie_word_embeddings=False))
    return Qwen3ForCausalLM(config), tokenizer


def qwen3_moe() -> tuple[PreTrainedModel, Any]:
    tokenizer = byte_level_tokenizer()
    config = Qwen3MoeConfig(**text_config(tokenizer, head_dim=HEAD, **EXPERTS, tie_word_embeddings=False))
    return Qwen3MoeForCausalLM(config), tokenizer
