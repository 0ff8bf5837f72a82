"""A tiny random model of every backbone, with a processor of its own class: hidden 64, two layers, heads of 32.

Vision-language ones take images of the tiny world, 28 pixels a token (InternVL: tiles of 56, four tokens each).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
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
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmprm.tiny.image import CELL
from mmprm.tiny.tokenizer import CHAT_TEMPLATE, END, PAD, UNKNOWN, WORDS, build_processor, build_tokenizer
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Solution

SPARE_TOKENS = 8
HIDDEN, HEAD = 64, 32
TILE = 2 * CELL


def write_backbone(name: str, folder: Path) -> Path:
    """Model and processor of BACKBONES[name] as a folder; the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = BACKBONES[name]()
        for parameter in model.parameters():  # biases and position tables begin as zeros, which hides mistakes
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_solutions(name: str, count: int, seed: int = 0) -> list[Solution]:
    """Solutions with mistakes, of different lengths; without the image for a backbone that reads text only."""
    rng = random.Random(seed)
    found = []
    for tiny in make_problems(count, seed=seed, split="train"):
        problem = tiny.problem if name in WITH_IMAGE else replace(tiny.problem, images=())
        found.append(Solution(problem, solve(tiny, rng, Mistakes(easy=0.2, hard=0.2))))
    return found


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
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


def _mrope(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6], **more}
    return {"rope_parameters": rope, "tie_word_embeddings": False}


def _qwen_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _qwen2_vl() -> tuple[PreTrainedModel, Any]:
    pixels = {"shortest_edge": CELL * CELL, "longest_edge": 64 * CELL * CELL}
    shape = {"size": pixels, "patch_size": CELL // 2, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**shape),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**shape),
        chat_template=CHAT_TEMPLATE,
    )
    vision = {**_QWEN_VISION, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "mlp_ratio": 2}
    tokenizer = processor.tokenizer
    config = Qwen2VLConfig(
        text_config=_text(tokenizer, **_mrope()),
        vision_config=vision,
        **_qwen_tokens(tokenizer),
        tie_word_embeddings=False,
    )
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[PreTrainedModel, Any]:
    processor = build_processor()
    vision = {**_QWEN_VISION, "hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "intermediate_size": 128}
    tokenizer = processor.tokenizer
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, **_mrope()),
        vision_config={**vision, "window_size": 112, "fullatt_block_indexes": [1]},
        **_qwen_tokens(tokenizer),
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> tuple[PreTrainedModel, Any]:
    pixels = {"shortest_edge": CELL * CELL, "longest_edge": 64 * CELL * CELL}
    shape = {"size": pixels, "patch_size": CELL // 2, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**shape),
        tokenizer=build_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**shape),
        chat_template=CHAT_TEMPLATE,
    )
    vision = {**_QWEN_VISION, "hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "intermediate_size": 128}
    tokenizer = processor.tokenizer
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, head_dim=HEAD, **_mrope(mrope_interleaved=True)),
        vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **_qwen_tokens(tokenizer),
        tie_word_embeddings=False,
    )
    return Qwen3VLForConditionalGeneration(config), processor


def _internvl() -> tuple[PreTrainedModel, Any]:
    """Its language model is a Qwen2, as in InternVL2.5 and 3; images are cut into tiles."""
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
        text_config={"model_type": "qwen2", **_text(tokenizer), "tie_word_embeddings": False},
        vision_config={**vision, "image_size": [TILE, TILE], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config), processor


def _byte_level_tokenizer() -> Qwen2Tokenizer:
    """Qwen2 folders are read with its byte-level tokenizer, whatever class wrote them; merges from a few words."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(["system user assistant Yes No", *WORDS] * 5, trainer)
    bpe = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=["<|im_start|>"],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _qwen2() -> tuple[PreTrainedModel, Any]:
    tokenizer = _byte_level_tokenizer()
    return Qwen2ForCausalLM(Qwen2Config(**_text(tokenizer, tie_word_embeddings=False))), tokenizer


def _llama() -> tuple[PreTrainedModel, Any]:
    """Tied embeddings, and exactly as many rows as tokens."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(**_text(tokenizer, vocab_size=len(tokenizer), tie_word_embeddings=True))
    return LlamaForCausalLM(config), tokenizer


BACKBONES: dict[str, Callable[[], tuple[PreTrainedModel, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "qwen2": _qwen2,
    "llama": _llama,
}
WITH_IMAGE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
