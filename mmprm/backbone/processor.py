"""Questions about a checkpoint's processor and tokenizer: image tokens, single tokens, templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmprm.errors import CheckpointError


def tokenizer_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def reads_pictures(processor: Any) -> bool:
    return hasattr(processor, "image_processor")


def vision_tokens(processor: Any, picture: str) -> list[str]:
    """What stands for pictures and videos in a text, and the tokens around it: the model would look there for pixels
    that do not exist. The processor names most of them; the rest are in `picture`, what the template writes for one."""
    if not reads_pictures(processor):
        return []
    named = {value for name, value in vars(processor).items() if name.endswith("_token") and isinstance(value, str)}
    return sorted(named | {token for token in tokenizer_of(processor).get_added_vocab() if token in picture})


def token_id(processor: Any, token: str) -> int:
    """Id of a text that must be one token of this tokenizer; CheckpointError otherwise."""
    ids = tokenizer_of(processor).encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise CheckpointError(
            f"{token!r} must be one token, this tokenizer makes {len(ids)} of it; choose another one with "
            "--set tokens.yes=… (marker, no), or let it be added with --set add_missing_tokens=true"
        )
    return ids[0]


_PROBE = "?"


def _around(messages: list[dict[str, Any]], processor: Any) -> tuple[str, str]:
    """What the chat template writes before and after the probe."""
    before, probe, after = templated(processor, messages).rpartition(_PROBE)
    if not probe:
        raise CheckpointError(f"{type(processor).__name__}: its chat template drops what a turn says; mend it")
    return before, after


def templated(processor: Any, messages: Any) -> str:
    """The text of the messages. Raises CheckpointError for a template that does not parse, that breaks out of its
    sandbox, or refuses the messages."""
    try:
        return processor.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # templates raise what they like
        raise CheckpointError(
            f"{type(processor).__name__}: its chat template cannot be applied ({type(error).__name__}: {error}); mend "
            "chat_template.jinja in the model folder"
        ) from error


def picture_placeholder(processor: Any) -> str:
    text = {"type": "text", "text": _PROBE}
    before, _ = _around([{"role": "user", "content": [text]}], processor)
    pictured, _ = _around([{"role": "user", "content": [{"type": "image"}, text]}], processor)
    return pictured.removeprefix(before).strip()


VISION = re.compile(r"(image|video|vision)\w*token_id$")


VISION_TOKEN = re.compile(r"image|video|vision|img", re.IGNORECASE)


def vision_token_ids(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that stand for pictures or frame them. A drawn one would ask the trainer for a picture that is not there.

    By the names of the configuration's keys (image_token_id, …) and of the tokenizer's special tokens (<|image_pad|>,
    <img>, …).
    """
    by_key = {value for key, value in config.to_dict().items() if VISION.search(key) and isinstance(value, int)}
    special: Sequence[str] = tokenizer.all_special_tokens
    by_name = {tokenizer.convert_tokens_to_ids(token) for token in special if VISION_TOKEN.search(token)}
    return tuple(sorted(by_key | by_name))
