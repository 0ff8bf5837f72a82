"""Read a row's question and images from its columns, its chat messages, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmprm.data.cells import Row, as_builtin, cut
from mmprm.data.chat import ImagePart, Turn, images_of, is_chat, read_turns
from mmprm.data.columns import Columns, cells_of, only_one, used_names
from mmprm.data.image_cells import listed, read_image
from mmprm.data.images import image_digest
from mmprm.data.marks import IMAGE, count_marks, strip_marks
from mmprm.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """Holds a question and its images.

    `images` holds the row's unread image values, in the order of their marks. With `one_for_all`, a single mark at the
    front may represent all images. `said` is the assistant's reply after the last user turn.
    """

    text: Any
    images: list[Any]
    used: set[str] = field(default_factory=set)
    has_system: bool = False
    one_for_all: bool = False
    said: str = ""


def read_question(row: Row, columns: Columns, images: list[Any], root: Path, location: str) -> Question:
    """Read the question, and merge the images from columns (`images`) with those in the messages.

    Raises DataError if columns and messages hold different questions (neither contains the other), if the placeholders
    do not match the column images, and for messages that ask again after an answer.
    """
    texts = cells_of(row, columns, "question", location)
    chats = cells_of(row, columns, "chat", location)
    text = only_one(texts, "question", location)
    used = used_names(row, texts) | used_names(row, chats)
    if not chats or (text is not None and not _is_messages(chats[0][1])):
        return Question(text, images, used)
    name, chat = chats[0]
    _check_same_chat(chats, location)
    turns = read_turns(chat, location)
    asked = [turn for turn in turns if turn.role == "user"]
    parts = images_of(asked)
    merged, before = merged_images(parts, images, root, location)
    chat_text = IMAGE * before + _text(asked, len(merged) - before)
    has_system = any(turn.role == "system" for turn in turns)
    said = "\n".join(turn.text for turn in turns[_after_last_user(turns) :] if turn.role == "assistant")
    if text is None:
        _check_one_question(turns, location)
        return Question(chat_text, merged, used, has_system, one_for_all=not parts, said=said)
    if columns.question is None:
        _check_same(texts[0][0], str(text), name, chat_text, location)
    if not count_marks(str(text)) and _bare(str(text)) == _bare(chat_text):
        text = chat_text  # the same words, with the positions of the images
    return Question(text, merged, used, has_system, said=said)


def column_images(found: Sequence[tuple[str, Any]], root: Path, location: str) -> list[Any]:
    """Return the cell values of a row's images, from the column with the most images if several columns have some.

    Columns with an unavailable image are skipped if all images of another column are available. Raises DataError if no
    column holds all images of the others.
    """
    filled = [(name, items) for name, value in found if (items := listed(value))]
    if len(filled) < 2:
        return filled[0][1] if filled else []
    at_hand = [
        (name, items, digests) for name, items in filled if (digests := _digests(items, root, location)) is not None
    ]
    if not at_hand:
        return filled[0][1]
    name, items, most = max(at_hand, key=lambda each: len(each[2]))
    for other, _, digests in at_hand:
        if not set(digests) <= set(most):
            raise DataError(
                f"{location}: {name} and {other} both hold images, but different ones; set columns.images to one of "
                "them"
            )
    return items


def _digests(values: list[Any], root: Path, location: str) -> list[str] | None:
    """Return the digest of each image, or None if any of them is unavailable."""
    try:
        images = [read_image(value, root, location) for value in values]
    except DataError:
        return None
    if not all(image.path is None or Path(image.path).is_file() for image in images):
        return None
    return [image_digest(image) for image in images]


def _is_messages(chat: Any) -> bool:
    """Return whether a cell contains chat messages. A column `message` next to a question may contain plain text."""
    return is_chat(chat) or (isinstance(chat, str) and chat.lstrip().startswith(("[{", "{"))) or isinstance(chat, list)


def merged_images(parts: list[ImagePart], images: list[Any], root: Path, location: str) -> tuple[list[Any], int]:
    """Merge a row's column images with its message images. Returns all images in order, and the number of images before
    the message images.

    A part without its own image is a placeholder for the next column image. An image in both a column and a part counts
    once. Raises DataError if the number of placeholders differs from the number of column images (`images`).
    """
    own = [part.value for part in parts if part.value is not None]
    unfilled = len(parts) - len(own)
    if unfilled not in (0, len(images)):
        raise DataError(
            f"{location}: its messages have {unfilled} image placeholders, but the columns hold {len(images)} images; "
            "set columns.images, or put the images into the messages"
        )
    if unfilled:
        rest = iter(images)
        return [next(rest) if part.value is None else part.value for part in parts], 0
    if own and images:
        given = {image_digest(read_image(value, root, location)) for value in own}
        images = [value for value in images if image_digest(read_image(value, root, location)) not in given]
    return images + own, len(images) if own else 0


def _text(turns: Sequence[Turn], images: int) -> str:
    """Join the user turns into one text with a placeholder per image. If the text's own placeholders already cover all
    images, image parts add none."""
    text = "\n".join(turn.text for turn in turns)
    if count_marks(text) == images:
        return text
    texts = [[piece for piece in turn.pieces if isinstance(piece, str)] for turn in turns]
    written = "\n".join("".join(pieces) for pieces in texts)
    return written if count_marks(written) == images else text


def _check_one_question(turns: Sequence[Turn], location: str) -> None:
    if any(turn.role == "assistant" for turn in turns[: _after_last_user(turns)]):
        raise DataError(
            f"{location}: its messages hold an assistant turn before the last user turn; a problem is one question: "
            "keep one user turn, or remove the row (mmprm sft learns from such conversations)"
        )


def _after_last_user(turns: Sequence[Turn]) -> int:
    return max((number for number, turn in enumerate(turns, start=1) if turn.role == "user"), default=0)


def _check_same_chat(chats: Sequence[tuple[str, Any]], location: str) -> None:
    (first, chat), *others = chats
    for name, other in others:
        if as_builtin(chat) != as_builtin(other) and is_chat(other):
            raise DataError(
                f"{location}: {first} and {name} both hold messages, but different ones; set columns.chat to one of "
                "them"
            )


def _check_same(name: str, text: str, chat_name: str, chat_text: str, location: str) -> None:
    one, other = _bare(text), _bare(chat_text)
    if one.casefold() not in other.casefold() and other.casefold() not in one.casefold():
        raise DataError(
            f"{location}: {name} and {chat_name} hold different questions ({cut(one)!r}, {cut(other)!r}); set "
            "columns.question, or remove one of them"
        )


def _bare(text: str) -> str:
    """Strip image placeholders from a text and normalize its whitespace."""
    return " ".join(strip_marks(text).split())
