"""Inspect a checkpoint's processor and tokenizer: its image tokens, which words are single tokens, and its chat
template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmprm.errors import CheckpointError


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a multimodal processor, or the tokenizer itself for a text model."""
    return getattr(processor, "tokenizer", processor)


def reads_images(processor: Any) -> bool:
    """Return whether the processor accepts images."""
    return hasattr(processor, "image_processor")


def vision_tokens(processor: Any, image: str) -> list[str]:
    """Return the tokens that represent or enclose images and videos. A model would expect pixels for them.

    The processor names most of them. The rest occur in `image`, the template's placeholder for one image.
    """
    if not reads_images(processor):
        return []
    named = {value for name, value in vars(processor).items() if name.endswith("_token") and isinstance(value, str)}
    return sorted(named | {token for token in tokenizer_of(processor).get_added_vocab() if token in image})


def token_id(processor: Any, token: str) -> int:
    """Return the id of `token`, or raise CheckpointError if the tokenizer splits it."""
    ids = tokenizer_of(processor).encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise CheckpointError(
            f"{token!r} must be one token, but this tokenizer splits it into {len(ids)}; choose another one with "
            "--set tokens.yes=… (or marker, no), or add it with --set add_missing_tokens=true"
        )
    return ids[0]


_PROBE = "?"


def _around(messages: list[dict[str, Any]], processor: Any) -> tuple[str, str]:
    """Render a probe text with the chat template, and return the text before and after the probe."""
    before, probe, after = templated(processor, messages).rpartition(_PROBE)
    if not probe:
        raise CheckpointError(
            f"{type(processor).__name__}: its chat template drops the content of a turn; correct chat_template.jinja"
        )
    return before, after


def templated(processor: Any, messages: Any) -> str:
    """Apply the processor's chat template to the messages and return the text.

    Raises CheckpointError if the template does not parse, tries to leave its sandbox, or rejects the messages.
    """
    try:
        return processor.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template can raise any error
        raise CheckpointError(
            f"{type(processor).__name__}: its chat template cannot be applied ({type(error).__name__}: {error}); "
            "correct chat_template.jinja in the model folder"
        ) from error


def image_placeholder(processor: Any, kind: str = "image") -> str:
    """Return the text that the chat template writes for one image, or for one medium of another kind."""
    text = {"type": "text", "text": _PROBE}
    before, _ = _around([{"role": "user", "content": [text]}], processor)
    with_image, _ = _around([{"role": "user", "content": [{"type": kind}, text]}], processor)
    return with_image.removeprefix(before).strip()


VISION = re.compile(r"(image|video|vision|audio)\w*token_(id|index)$")


VISION_TOKEN = re.compile(r"image|video|vision|img|audio", re.IGNORECASE)


def vision_token_ids(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of the tokens that represent or enclose images, videos and audio, which must not be sampled.

    Sampling one would make the trainer expect an image. They are found by the names of configuration keys
    (image_token_id, …) and of the tokenizer's special tokens (<|image_pad|>, <img>, <|AUDIO|>, …).
    """
    keys = config.to_dict()
    keys = keys.get("thinker_config", keys)  # Qwen2.5-Omni, whose speech part has ids of its own
    by_key = {value for key, value in keys.items() if VISION.search(key) and isinstance(value, int)}
    special: Sequence[str] = tokenizer.all_special_tokens
    by_name = {tokenizer.convert_tokens_to_ids(token) for token in special if VISION_TOKEN.search(token)}
    return tuple(sorted(by_key | by_name))
