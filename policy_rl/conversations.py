"""Conversations to imitate: chat data in its published forms, and problems with solutions, as messages of one form.

ShareGPT             `conversations`: [{from, value}], with <image> marks, pictures in `image` or `images`
MM-Eureka, LMM-R1    `message`: chat messages, also as a JSON string; `answer` where no assistant turn is among them
InternVL             `conversations` and `image_urls`
our own problems     `question`, `pictures`, `solution`, asked as `prompt` says
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.data.chat import Piece, read_turns
from mmprm.data.columns import read_cell
from mmprm.data.images import listed, read_picture
from mmprm.data.marks import IMAGE
from mmprm.data.rows import read_rows
from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, pictures_root, read_problem
from mmprm.prompts import PromptConfig, assistant_beginning, messages
from mmprm.types import Picture

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in transformers' form, the last one the assistant's; every assistant turn is learned. `place` is where
    it was read; `given` is the text that the last turn begins with and that is not learned (a prefill)."""

    place: str
    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...] = ()
    given: str = ""


def read_conversations(config: ProblemsConfig, prompt: PromptConfig) -> list[Conversation]:
    """In file order. Raises DataError, naming file and line, for a row without a response or with an empty one, a role
    that is not known, or marks and pictures that differ in number."""
    root, found = pictures_root(config), []
    for place, row in read_rows(config):
        is_chat = read_cell(row, config.columns, "chat", place) is not None
        found.append((_from_chat if is_chat else _from_problem)(row, config, prompt, root, place))
    if not found:
        raise DataError(f"{config.path}: holds no conversation")
    return found


def _from_problem(
    row: Mapping[str, Any], config: ProblemsConfig, prompt: PromptConfig, root: Path, place: str
) -> Conversation:
    problem = read_problem(row, config.columns, root, place)
    if not (problem.solution or "").strip():
        raise DataError(f"{place}: has no solution to learn; it has {', '.join(row)} (set columns.solution)")
    given = assistant_beginning(prompt, "")
    response = {"role": "assistant", "content": given + problem.solution}
    return Conversation(place, (*messages(problem, prompt), response), problem.pictures, given)


def _from_chat(
    row: Mapping[str, Any], config: ProblemsConfig, prompt: PromptConfig, root: Path, place: str
) -> Conversation:
    chat = read_turns(read_cell(row, config.columns, "chat", place), place)
    turns = [(turn.role, list(map(_piece, turn.pieces))) for turn in chat]
    if turns and turns[-1][0] != "assistant":
        solution, answer = (read_cell(row, config.columns, field, place) for field in ("solution", "answer"))
        response = answer if solution is None else solution
        if response is None:
            raise DataError(f"{place}: ends in a {turns[-1][0]} turn and has neither solution nor answer to learn")
        turns.append(("assistant", [str(response)]))
    pictures = [read_picture(value, root, place) for value in listed(read_cell(row, config.columns, "pictures", place))]
    if not any(role == "user" for role, _ in turns):
        raise DataError(f"{place}: has no user turn")
    return _placed(turns, pictures, root, place)


def _piece(piece: Piece) -> Any:
    """A text, an image, or a mark where the part says that an image of the column stands there."""
    if isinstance(piece, str):
        return piece
    return IMAGE if piece.value is None else {"picture": piece.value}


def _placed(turns: Sequence[tuple[str, list[Any]]], pictures: list[Picture], root: Path, place: str) -> Conversation:
    """Pictures where <image> marks stand if there are as many; without marks, where the messages hold them, those of a
    column first."""
    own = [piece["picture"] for _, pieces in turns for piece in pieces if not isinstance(piece, str)]
    found = [*pictures, *(read_picture(value, root, place) for value in own)]
    marks = sum(piece.count(IMAGE) for role, pieces in turns if role == "user" for piece in pieces if _is_text(piece))
    if marks not in (0, len(found)):
        raise DataError(f"{place}: has {marks} {IMAGE} marks and {len(found)} pictures; they must be as many")
    written: list[Message] = []
    front = 0 if marks else len(pictures)
    for role, pieces in turns:
        if role != "user":
            if not all(map(_is_text, pieces)):
                raise DataError(f"{place}: a picture in a {role} turn cannot be shown; move it to the user's")
            text = "".join(pieces)
            if role == "assistant" and not text.strip():
                raise DataError(f"{place}: an assistant turn is empty; remove the row, or the turn")
            written.append({"role": role, "content": text})
            continue
        parts: list[dict[str, str]] = [{"type": "image"}] * front
        front = 0
        for piece in pieces:
            if _is_text(piece):
                parts += _split(piece)
            elif not marks:
                parts.append({"type": "image"})
        only_text = all(part["type"] == "text" for part in parts)
        content = "".join(part["text"] for part in parts) if only_text else parts
        written.append({"role": role, "content": content})
    return Conversation(place, tuple(written), tuple(found))


def _is_text(piece: Any) -> bool:
    return isinstance(piece, str)


def _split(text: str) -> list[dict[str, str]]:
    """Text and pictures in order. White space behind marks at the very front is no part of the question, as in
    problems."""
    text = re.sub(rf"\A((?:\s*{IMAGE})+)\s*", lambda match: IMAGE * match[1].count(IMAGE), text)
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts
