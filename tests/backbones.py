"""Write a tiny random model of every backbone, with its own processor class: hidden size 64, two layers, head size 32.

Vision-language models take images of the tiny world, with 28 pixels per token (InternVL: tiles of 56 pixels and four
tokens).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from mmprm.backbone.experts import save_backbone
from mmprm.tiny.image import CELL
from mmprm.tiny.tokenizer import CHAT_TEMPLATE, END, PAD, UNKNOWN, build_processor, build_tokenizer
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Solution
from tests.backbone_parts import (
    HIDDEN,
    QWEN_VISION,
    byte_level_tokenizer,
    image_shape,
    mrope_config,
    text_config,
    vision_token_config,
)
from tests.backbones_qwen3 import qwen3, qwen3_5, qwen3_5_moe, qwen3_moe, qwen3_vl, qwen3_vl_moe

TILE = 2 * CELL


def write_backbone(name: str, folder: Path) -> Path:
    """Write the model and processor of BACKBONES[name] or RECENT[name] to a folder, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = (BACKBONES | RECENT)[name]()
        # biases and position tables are initialized to zero, which would hide errors
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    save_backbone(model, folder)
    processor.save_pretrained(folder)
    return folder


def tiny_solutions(name: str, count: int, seed: int = 0) -> list[Solution]:
    """Return solutions of different lengths with mistakes, without images for text-only backbones."""
    rng = random.Random(seed)
    found = []
    for tiny in make_problems(count, seed=seed, split="train"):
        problem = tiny.problem if name in WITH_IMAGE else replace(tiny.problem, images=())
        found.append(Solution(problem, solve(tiny, rng, Mistakes(easy=0.2, hard=0.2))))
    return found


def _qwen2_vl() -> tuple[PreTrainedModel, Any]:
    shape = image_shape()
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**shape),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**shape),
        chat_template=CHAT_TEMPLATE,
    )
    vision = {**QWEN_VISION, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "mlp_ratio": 2}
    tokenizer = processor.tokenizer
    config = Qwen2VLConfig(
        text_config=text_config(tokenizer, **mrope_config()),
        vision_config=vision,
        **vision_token_config(tokenizer),
        tie_word_embeddings=False,
    )
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[PreTrainedModel, Any]:
    processor = build_processor()
    vision = {**QWEN_VISION, "hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "intermediate_size": 128}
    tokenizer = processor.tokenizer
    config = Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, **mrope_config()),
        vision_config={**vision, "window_size": 112, "fullatt_block_indexes": [1]},
        **vision_token_config(tokenizer),
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _internvl() -> tuple[PreTrainedModel, Any]:
    """Build an InternVL whose language model is a Qwen2, as in InternVL2.5 and 3. Images are split into tiles."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    names |= {"video_token": "<video>"}
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=names,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    size = {"height": TILE, "width": TILE}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template,
    )
    vision = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "hidden_size": HIDDEN}
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer), "tie_word_embeddings": False},
        vision_config={**vision, "image_size": [TILE, TILE], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config), processor


def _qwen2() -> tuple[PreTrainedModel, Any]:
    tokenizer = byte_level_tokenizer()
    return Qwen2ForCausalLM(Qwen2Config(**text_config(tokenizer, tie_word_embeddings=False))), tokenizer


def _llama() -> tuple[PreTrainedModel, Any]:
    """Build a Llama with tied embeddings and exactly as many rows as tokens."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(**text_config(tokenizer, vocab_size=len(tokenizer), tie_word_embeddings=True))
    return LlamaForCausalLM(config), tokenizer


BACKBONES: dict[str, Callable[[], tuple[PreTrainedModel, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": _internvl,
    "qwen2": _qwen2,
    "llama": _llama,
}
RECENT: dict[str, Callable[[], tuple[PreTrainedModel, Any]]] = {
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
}
"""Models with fewer tests of their own, so that the suite stays fast."""
WITH_IMAGE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
