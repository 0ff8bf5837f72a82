"""Parse chat messages in the formats of published data sets into turns of text and images.

OpenAI, TRL, verl, MM-Eureka, LMM-R1    [{role, content}], content a string or parts {type, …}; also as JSON text
ShareGPT, InternVL                      [{from, value}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmprm.data.cells import as_builtin, cut, parsed
from mmprm.data.json_rows import parse_strict_json
from mmprm.data.marks import IMAGE
from mmprm.errors import DataError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_TEXTS = ("text", "input_text", "output_text")
_MEDIA = ("video", "audio")


@dataclass(frozen=True, slots=True)
class ImagePart:
    """Represents an image in a message.

    Without `value`, the part is a placeholder for an image from a column.
    """

    value: Any = None


MessagePart = str | ImagePart


@dataclass(frozen=True, slots=True)
class Turn:
    """Holds one turn of a conversation; `role` is system, user or assistant."""

    role: str
    pieces: tuple[MessagePart, ...]

    @property
    def text(self) -> str:
        """Return the turn as one string, with <image> in place of each image."""
        return "".join(piece if isinstance(piece, str) else IMAGE for piece in self.pieces)


def read_turns(chat: Any, location: str) -> list[Turn]:
    """Parse chat messages into turns.

    Raises DataError, naming `location`, for an unknown format, an unknown role, or unsupported media.
    """
    if isinstance(chat, str):
        text = chat.strip()
        if not text.startswith(("[", "{")):
            raise DataError(
                f"{location}: chat messages have an unknown format: {cut(chat)!r} is not JSON; write a list of "
                "messages with role and content"
            )
        python = text.lstrip("[ \n").startswith("{'")
        chat = parsed(text) if python else parse_strict_json(text, f"{location} (chat messages)")
    chat = as_builtin(chat)
    try:
        return [_turn(turn, location) for turn in ([chat] if isinstance(chat, Mapping) else chat)]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{location}: chat messages have an unknown format ({type(error).__name__}: {cut(error)}); write "
            '[{"role": "user", "content": "…"}]'
        ) from error


def is_chat(value: Any) -> bool:
    """Return whether a cell holds chat messages rather than plain text."""
    value = as_builtin(value)
    if isinstance(value, str) and value.lstrip().startswith(("[{", "[ {", "{")):
        value = parsed(value)
    items = [value] if isinstance(value, Mapping) else value
    return (
        isinstance(items, list | tuple)
        and bool(items)
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items)
    )


def _turn(turn: Mapping[str, Any], location: str) -> Turn:
    role = turn.get("role") or turn.get("from")
    if role not in ROLES:
        raise DataError(f"{location}: role {cut(role)!r} must be one of {', '.join(ROLES)}; rename it")
    content = turn.get("content") or turn.get("value") or ""
    parts = [content] if isinstance(content, str | Mapping) else content
    return Turn(ROLES[role], tuple(_piece(part, location) for part in parts))


def _piece(part: Any, location: str) -> MessagePart:
    if isinstance(part, str):
        return part
    kind = part["type"]
    if kind in _TEXTS:
        return part["text"] or ""
    if any(media in kind for media in _MEDIA):
        raise DataError(
            f"{location}: a message holds a part of type {kind!r}, but videos and audio are read from columns; name "
            "these in columns.videos and columns.audios, and write <video> or <audio> at their positions"
        )
    return ImagePart(image_of(part))


def image_of(part: Mapping[str, Any]) -> Any:
    """Return the image in a message part. Its key is named by the part's type (image, image_url, …), or is url or path.

    Returns None if the part is only a placeholder. Raises KeyError if it has only other keys.
    """
    given = {key: value for key, value in part.items() if key != "type" and value not in (None, "")}
    given.pop("detail", None)
    if not given:
        return None
    names = (part["type"], part["type"].removeprefix("input_"), "image", "image_url", "url", "path", "base64", "data")
    return given[next((key for key in names if key in given), part["type"])]


def images_of(turns: Sequence[Turn]) -> list[ImagePart]:
    """Return the image parts of all turns, in order."""
    return [piece for turn in turns for piece in turn.pieces if isinstance(piece, ImagePart)]
