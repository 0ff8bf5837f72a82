"""Build the native processor for an older `internvl_chat` folder: tokenizer, tiling and chat template.

Qwen2 and Llama tokenizers load as they are. InternLM2's tokenizer is a SentencePiece file with its own code; the
tokenizers library produces the same tokens from the same merges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import (
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.tokenization_utils_base import generate_merges

from mmprm.errors import CheckpointError

IMAGE_CONTEXT = "<IMG_CONTEXT>"
TURN_END = "<|im_end|>"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MODEL_MAX_LENGTH = 8192
_NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": IMAGE_CONTEXT,
    "video_token": "<video>",
}

_SYSTEM_2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
TEMPLATES = {
    "Hermes-2": (_SYSTEM_2, TURN_END),
    "internlm2-chat": (_SYSTEM_2, TURN_END),
    "internvl2_5": (_SYSTEM_2_5, f"{TURN_END}\n"),
}
"""Maps `template` in config.json to the default system message and the end-of-turn text, as in conversation.py of the
InternVL repository. There, an empty turn has no end-of-turn text."""

_CHAT_TEMPLATE = """\
{{ BOS }}
{%- if not messages or messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n' + SYSTEM + END }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}
{%- elif part['type'] == 'video' %}{{ '<video>\\n' }}
{%- elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{%- if message['content'] %}{{ END }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def native_processor(source: Path, old: Mapping[str, Any]) -> InternVLProcessor:
    """Build the native processor for the folder `source`. `old` holds the contents of its config.json."""
    tiles = old.get("max_dynamic_patch", 12) if old.get("dynamic_image_size") else 1
    if tiles > 1 and not old.get("use_thumbnail"):
        raise CheckpointError(
            f"{source}: use_thumbnail=false must be true, because the native processor always adds a thumbnail to "
            "several tiles; choose another model, because this one cannot be converted"
        )
    vision = old["vision_config"]
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    look = {"size": size, "image_mean": _MEAN, "image_std": _STD, "do_convert_rgb": True}
    side = vision["image_size"] // vision["patch_size"] * old.get("downsample_ratio", 0.5)
    # `crop_to_patches` is always on in the native processor; at most one tile means that an image is not cut.
    cut = {"crop_to_patches": True, "max_patches": tiles, "min_patches": min(old.get("min_dynamic_patch", 1), tiles)}
    tokenizer = native_tokenizer(source)
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(**look, **cut),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**look),
        image_seq_length=int(side) ** 2,
        chat_template=chat_template(source, old.get("template"), bos=tokenizer.bos_token or ""),
    )


def chat_template(source: Path, name: str | None, bos: str) -> str:
    """Return a chat template that renders turns in the same way as the older code. The rendered text already starts
    with `bos`."""
    if name not in TEMPLATES:
        raise CheckpointError(
            f"{source}: template={name!r} must be {' or '.join(map(repr, TEMPLATES))}; choose a model with one of these"
        )
    system, end = TEMPLATES[name]
    values = {"BOS": bos, "SYSTEM": system, "END": end}
    settings = "".join(f"{{%- set {key} = {json.dumps(value, ensure_ascii=False)} %}}" for key, value in values.items())
    return settings + _CHAT_TEMPLATE


def native_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer, checking that every added token keeps its original id. Raises CheckpointError if one does
    not."""
    settings = {"model_specific_special_tokens": _NAMED_TOKENS, "model_max_length": _MODEL_MAX_LENGTH}
    if (source / "tokenizer.model").is_file() and not (source / "tokenizer.json").is_file():
        tokenizer = _from_sentencepiece(source, settings)
    elif (source / "vocab.json").is_file():
        tokenizer = Qwen2Tokenizer.from_pretrained(source, **settings)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **settings)
    added = _added_tokens(source)
    missing = {"<img>", "</img>", IMAGE_CONTEXT, TURN_END} - added.keys()
    if missing:
        raise CheckpointError(f"{source}: the tokenizer lacks {', '.join(missing)}; give the folder of the whole model")
    for token, expected in added.items():
        if tokenizer.convert_tokens_to_ids(token) != expected:
            raise CheckpointError(
                f"{source}: {token!r} became token {tokenizer.convert_tokens_to_ids(token)} and must be {expected}; "
                "take all tokenizer files from the same model"
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _added_tokens(source: Path) -> dict[str, int]:
    ids: dict[str, int] = {}
    if (source / "added_tokens.json").is_file():
        ids |= json.loads((source / "added_tokens.json").read_text(encoding="utf-8"))
    if (source / "tokenizer_config.json").is_file():
        settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
        ids |= {entry["content"]: int(key) for key, entry in settings.get("added_tokens_decoder", {}).items()}
    return ids


def _from_sentencepiece(source: Path, settings: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Load a SentencePiece BPE tokenizer with the added tokens at their original ids. Some replace unused pieces."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((source / "tokenizer.model").read_bytes())
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    if model.trainer_spec.model_type != sentencepiece_model_pb2.TrainerSpec.BPE:
        raise CheckpointError(
            f"{source}: tokenizer.model must be a BPE model, as InternLM2's is; give an InternVL folder"
        )
    added = sorted(_added_tokens(source).items(), key=lambda item: item[1])
    # Some added tokens take the ids of unused pieces, whose texts must not be in the vocabulary as well.
    names = {token_id: token for token, token_id in added}
    pieces = [names.get(token_id, piece.piece) for token_id, piece in enumerate(model.pieces)]
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    scores = {piece: entry.score for piece, entry in zip(pieces, model.pieces, strict=True)}
    whole = {piece for piece, entry in zip(pieces, model.pieces, strict=True) if entry.type != kinds.NORMAL} | {*names}
    core = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=generate_merges(vocabulary, scores, skip_tokens=whole),
            unk_token=model.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    prefix = model.normalizer_spec.add_dummy_prefix
    core.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    )
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, _ in added])
    spec = model.trainer_spec
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=spec.bos_piece,
        eos_token=spec.eos_piece,
        unk_token=spec.unk_piece,
        pad_token=spec.eos_piece,
        clean_up_tokenization_spaces=False,
        **settings,
    )
