"""Read SFT data as chat messages, from conversations in published formats or from problems with solutions.

ShareGPT             `conversations`: [{from, value}], with <image> marks, images in `image` or `images`
MM-Eureka, LMM-R1    `message`: chat messages, also as a JSON string; `answer` if none of them is an assistant turn
InternVL             `conversations` and `image_urls`
our own problems     `question`, `images`, `solution`, formatted according to `prompt`
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
from mmprm.data.image_cells import read_image
from mmprm.data.marks import IMAGE, check_text, place_marks
from mmprm.data.media import unreadable_media
from mmprm.data.question import column_images, merged_images
from mmprm.data.rows import read_rows
from mmprm.errors import DataError
from mmprm.problems import ProblemReader, ProblemsConfig, image_folder
from mmprm.prompts import PromptConfig, assistant_beginning, messages
from mmprm.types import ImageRef

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Represents a conversation as messages in transformers' format. The last turn is the assistant's.

    Every assistant turn is learned, except for `given`, the prefill at the start of the last turn. `location` is the
    file and line from which the conversation was read.
    """

    location: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    given: str = ""


def read_conversations(config: ProblemsConfig, prompt: PromptConfig) -> list[Conversation]:
    """Read the conversations of a data set, in file order.

    Raises DataError, naming file and line, if a row has no response, an empty response, an unknown role, or different
    numbers of image marks and images.
    """
    root, found = image_folder(config), []
    reader = ProblemReader(config.columns, root)
    for location, row in read_rows(config):
        if read_cell(row, config.columns, "chat", location) is not None:
            found.append(_from_chat(row, config.columns, root, location))
        else:
            found.append(_from_problem(row, reader, prompt, location))
    if not found:
        raise DataError(f"{config.path}: contains no conversation; add rows, or name another file in data.path")
    reader.tell()
    return found


def without_unreadable(found: Sequence[Conversation]) -> tuple[list[Conversation], dict[str, str]]:
    """Decode every image once before training, and exclude the conversations with unreadable images.

    Returns the other conversations, and the reasons for the excluded ones by location. Raises DataError if none is
    left.
    """
    broken = unreadable_media((each.location, each.images) for each in found)
    if len(broken) == len(found):
        location, reason = next(iter(broken.items()))
        raise DataError(
            f"{location}: {reason}; the images of no conversation can be read; set data.image_root to their folder"
        )
    return [each for each in found if each.location not in broken], broken


def _from_problem(row: Mapping[str, Any], reader: ProblemReader, prompt: PromptConfig, location: str) -> Conversation:
    problem = reader.problem(row, location)
    if not (problem.solution or "").strip():
        raise DataError(
            f"{location}: has no solution to learn; it has {names_of(row)}; set columns.solution to its column"
        )
    given = assistant_beginning(prompt, "")
    response = {"role": "assistant", "content": given + problem.solution}
    return Conversation(location, (*messages(problem, prompt), response), problem.images, given)


def _from_chat(row: Mapping[str, Any], columns: Columns, root: Path, location: str) -> Conversation:
    turns = read_turns(read_cell(row, columns, "chat", location), location)
    if turns and turns[-1].role != "assistant":
        solution, answer = (read_cell(row, columns, field, location) for field in ("solution", "answer"))
        response = answer if solution is None else solution
        if response is None:
            raise DataError(
                f"{location}: ends with a {turns[-1].role} turn and has neither solution nor answer to learn; add an "
                "assistant turn, or set columns.solution"
            )
        turns.append(Turn("assistant", (str(response),)))
    if not any(turn.role == "user" for turn in turns):
        raise DataError(f"{location}: has no user turn; add one, or remove the row")
    check_media(row, location)
    found = cells_of(row, columns, "images", location)
    conversation = _placed(turns, column_images(found, root, location), root, location)
    if not conversation.images and columns.images is None:
        used = used_names(row, [*found, *cells_of(row, columns, "chat", location)])
        check_unread_images(rest_of(row, used), "", location)
    return conversation


def _placed(turns: Sequence[Turn], columns_images: list[Any], root: Path, location: str) -> Conversation:
    """Build a conversation with its images at their positions in the messages.

    Images replace the <image> marks if there are as many marks as images. Without marks, images from a column come
    first, and images in messages stay where they are.
    """
    asked = [turn for turn in turns if turn.role == "user"]
    parts = images_of(asked)
    values, front = merged_images(parts, columns_images, root, location)
    texts = [piece for turn in asked for piece in turn.pieces if isinstance(piece, str)] or [""]
    texts = place_marks(texts, len(values), location, ["a user turn"] * len(texts))
    marked = any(IMAGE in text for text in texts)
    front = 0 if marked else front if parts else len(values)
    pieces, written = iter(texts), list[Message]()
    for turn in turns:
        if turn.role != "user":
            written.append(_other_turn(turn, location))
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
    images = tuple(read_image(value, root, location) for value in values)
    return Conversation(location, tuple(written), images)


def _other_turn(turn: Turn, location: str) -> Message:
    if any(isinstance(piece, ImagePart) for piece in turn.pieces):
        raise DataError(f"{location}: an image in a {turn.role} turn is not supported; move it to the user's turn")
    if turn.role == "assistant" and not turn.text.strip():
        raise DataError(f"{location}: an assistant turn is empty; remove the row, or the turn")
    if turn.role == "system":
        check_text(turn.text, "a system turn", location)
    return {"role": turn.role, "content": turn.text}


def _split(text: str) -> list[dict[str, str]]:
    """Split a text at its <image> marks into text parts and image parts, in order.

    Whitespace around marks at the very beginning is dropped, because it is not part of the question; problems are read
    in the same way.
    """
    text = re.sub(rf"\A((?:\s*{IMAGE})+)\s*", lambda match: IMAGE * match[1].count(IMAGE), text)
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts
