"""Read conversations to imitate: chat data in its published formats, and problems with solutions, as chat messages.

ShareGPT             `conversations`: [{from, value}], with <image> marks, images in `image` or `images`
MM-Eureka, LMM-R1    `message`: chat messages, also as a JSON string; `answer` if there is no assistant turn among them
InternVL             `conversations` and `image_urls`
our own problems     `question`, `pictures`, `solution`, presented as `prompt` says
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.data.cells import names_of
from mmprm.data.chat import ImagePart, Turn, images_of, read_turns
from mmprm.data.columns import Columns, cells_of, check_media, check_unread_images, read_cell, rest_of, used_names
from mmprm.data.image_cells import read_picture
from mmprm.data.images import unreadable_images
from mmprm.data.marks import IMAGE, check_text, place_marks
from mmprm.data.question import column_images, merged_images
from mmprm.data.rows import read_rows
from mmprm.errors import DataError
from mmprm.problems import ProblemReader, ProblemsConfig, pictures_root
from mmprm.prompts import PromptConfig, assistant_beginning, messages
from mmprm.types import Picture

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Hold messages in transformers' format, the last one the assistant's; every assistant turn is learned.

    `place` is the file and line that it was read from; `given` is the text at the start of the last turn that is not
    learned (a prefill).
    """

    place: str
    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...] = ()
    given: str = ""


def read_conversations(config: ProblemsConfig, prompt: PromptConfig) -> list[Conversation]:
    """Return the conversations in file order.

    Raises DataError, naming file and line, for a row without a response or with an empty one, an unknown role, or
    different numbers of image marks and images.
    """
    root, found = pictures_root(config), []
    reader = ProblemReader(config.columns, root)
    for place, row in read_rows(config):
        if read_cell(row, config.columns, "chat", place) is not None:
            found.append(_from_chat(row, config.columns, root, place))
        else:
            found.append(_from_problem(row, reader, prompt, place))
    if not found:
        raise DataError(f"{config.path}: holds no conversation")
    reader.tell()
    return found


def without_unreadable(found: Sequence[Conversation]) -> tuple[list[Conversation], dict[str, str]]:
    """Decode every image once, before training needs it, and separate conversations with unreadable images.

    Returns the conversations whose images can be read, and the reasons for the others by place. Raises DataError if
    none is left.
    """
    broken = unreadable_images((each.place, each.pictures) for each in found)
    if len(broken) == len(found):
        place, reason = next(iter(broken.items()))
        raise DataError(f"{place}: {reason}; the images of no conversation can be read: set data.images_root")
    return [each for each in found if each.place not in broken], broken


def _from_problem(row: Mapping[str, Any], reader: ProblemReader, prompt: PromptConfig, place: str) -> Conversation:
    problem = reader.problem(row, place)
    if not (problem.solution or "").strip():
        raise DataError(f"{place}: has no solution to learn; it has {names_of(row)} (set columns.solution)")
    given = assistant_beginning(prompt, "")
    response = {"role": "assistant", "content": given + problem.solution}
    return Conversation(place, (*messages(problem, prompt), response), problem.pictures, given)


def _from_chat(row: Mapping[str, Any], columns: Columns, root: Path, place: str) -> Conversation:
    turns = read_turns(read_cell(row, columns, "chat", place), place)
    if turns and turns[-1].role != "assistant":
        solution, answer = (read_cell(row, columns, field, place) for field in ("solution", "answer"))
        response = answer if solution is None else solution
        if response is None:
            raise DataError(f"{place}: ends in a {turns[-1].role} turn and has neither solution nor answer to learn")
        turns.append(Turn("assistant", (str(response),)))
    if not any(turn.role == "user" for turn in turns):
        raise DataError(f"{place}: has no user turn")
    check_media(row, place)
    found = cells_of(row, columns, "pictures", place)
    conversation = _placed(turns, column_images(found, root, place), root, place)
    if not conversation.pictures and columns.pictures is None:
        used = used_names(row, [*found, *cells_of(row, columns, "chat", place)])
        check_unread_images(rest_of(row, used), "", place)
    return conversation


def _placed(turns: Sequence[Turn], columns_images: list[Any], root: Path, place: str) -> Conversation:
    """Return the conversation with its images in place.

    Images replace the <image> marks if there are as many. Without marks they are where the messages hold them, those of
    a column first.
    """
    asked = [turn for turn in turns if turn.role == "user"]
    parts = images_of(asked)
    values, front = merged_images(parts, columns_images, root, place)
    texts = [piece for turn in asked for piece in turn.pieces if isinstance(piece, str)] or [""]
    texts = place_marks(texts, len(values), place, ["a user turn"] * len(texts))
    marked = any(IMAGE in text for text in texts)
    front = 0 if marked else front if parts else len(values)
    pieces, written = iter(texts), list[Message]()
    for turn in turns:
        if turn.role != "user":
            written.append(_other_turn(turn, place))
            continue
        content: list[dict[str, str]] = [{"type": "image"}] * front
        front = 0
        for piece in turn.pieces:
            if isinstance(piece, ImagePart):
                content += [] if marked else [{"type": "image"}]
            else:
                content += _split(next(pieces))
        only_text = all(part["type"] == "text" for part in content)
        whole = "".join(part["text"] for part in content) if only_text else content
        written.append({"role": "user", "content": whole})
    images = tuple(read_picture(value, root, place) for value in values)
    return Conversation(place, tuple(written), images)


def _other_turn(turn: Turn, place: str) -> Message:
    if any(isinstance(piece, ImagePart) for piece in turn.pieces):
        raise DataError(f"{place}: a picture in a {turn.role} turn cannot be shown; move it to the user's")
    if turn.role == "assistant" and not turn.text.strip():
        raise DataError(f"{place}: an assistant turn is empty; remove the row, or the turn")
    if turn.role == "system":
        check_text(turn.text, "a system turn", place)
    return {"role": turn.role, "content": turn.text}


def _split(text: str) -> list[dict[str, str]]:
    """Return text and images in order.

    White space after marks at the very beginning does not belong to the question; problems are read in the same way.
    """
    text = re.sub(rf"\A((?:\s*{IMAGE})+)\s*", lambda match: IMAGE * match[1].count(IMAGE), text)
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts
