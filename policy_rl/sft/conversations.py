"""Read SFT data as chat messages, from conversations in published formats or from problems with solutions.

ShareGPT             `conversations`: [{from, value}], with <image> marks, images in `image` or `images`
R1-Omni              `conversations` with <video> and <audio> marks, and `video`, whose audio track is used
MM-Eureka, LMM-R1    `message`: chat messages, also as a JSON string; `answer` if none of them is an assistant turn
InternVL             `conversations` and `image_urls`
our own problems     `question`, `images`, `solution`, formatted according to `prompt`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmprm.data.cells import names_of
from mmprm.data.chat import ImagePart, Turn, images_of, read_turns
from mmprm.data.columns import cells_of, check_media, check_unread_images, read_cell, rest_of, used_names
from mmprm.data.image_cells import read_image
from mmprm.data.marks import MARKS, check_text, place_marks, split_at_marks
from mmprm.data.media import unreadable_media
from mmprm.data.media_cells import audio_tracks, read_audios, read_videos
from mmprm.data.question import column_images, merged_images
from mmprm.data.rows import read_rows
from mmprm.errors import DataError
from mmprm.problems import ProblemReader, ProblemsConfig, image_folder
from mmprm.prompts import PromptConfig, assistant_beginning, messages
from mmprm.types import AudioRef, ImageRef, MediaRef, VideoRef

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Represents a conversation as messages in transformers' format. The last turn is the assistant's.

    Every assistant turn is learned, except for `given`, the prefill at the start of the last turn. `location` is the
    file and line from which the conversation was read. The media of each kind are in the order of their parts.
    """

    location: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    given: str = ""
    videos: tuple[VideoRef, ...] = ()
    audios: tuple[AudioRef, ...] = ()

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """Return the images, then the videos, then the audio recordings."""
        return (*self.images, *self.videos, *self.audios)


def read_conversations(config: ProblemsConfig, prompt: PromptConfig) -> list[Conversation]:
    """Read the conversations of a data set, in file order.

    Raises DataError, naming file and line, if a row has no response, an empty response, an unknown role, or different
    numbers of image marks and images.
    """
    root, found = image_folder(config), []
    reader = ProblemReader(config.columns, root, video_frames=config.video_frames)
    for location, row in read_rows(config):
        if read_cell(row, config.columns, "chat", location) is not None:
            found.append(_from_chat(row, config, root, location))
        else:
            found.append(_from_problem(row, reader, prompt, location))
    if not found:
        raise DataError(f"{config.path}: contains no conversation; add rows, or name another file in data.path")
    reader.tell()
    return found


def without_unreadable(found: Sequence[Conversation]) -> tuple[list[Conversation], dict[str, str]]:
    """Decode every medium once before training, and exclude the conversations with unreadable ones.

    Returns the other conversations, and the reasons for the excluded ones by location. Raises DataError if none is
    left.
    """
    broken = unreadable_media((each.location, each.media) for each in found)
    if len(broken) == len(found):
        location, reason = next(iter(broken.items()))
        raise DataError(
            f"{location}: {reason}; the media of no conversation can be read; set data.image_root to their folder"
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
    turns = (*messages(problem, prompt), response)
    return Conversation(location, turns, problem.images, given, problem.videos, problem.audios)


def _from_chat(row: Mapping[str, Any], config: ProblemsConfig, root: Path, location: str) -> Conversation:
    columns = config.columns
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
    check_media(row, columns, location)
    found, videos, audios = (cells_of(row, columns, field, location) for field in ("images", "videos", "audios"))
    media = _Media(
        column_images(found, root, location),
        read_videos(videos, config.video_frames, root, location),
        read_audios(audios, root, location),
    )
    conversation = _placed(turns, media, root, location)
    if not conversation.media and columns.images is None:
        used = used_names(row, [*found, *cells_of(row, columns, "chat", location)])
        check_unread_images(rest_of(row, used), "", location)
    return conversation


class _Media(NamedTuple):
    """Holds the media in a row's columns; images are cell values."""

    images: list[Any]
    videos: tuple[VideoRef, ...]
    audios: tuple[AudioRef, ...]


def _placed(turns: Sequence[Turn], media: _Media, root: Path, location: str) -> Conversation:
    """Build a conversation with its media at their positions in the messages.

    Media replace the marks of their kind if there are as many marks as media. Without marks, media from a column come
    first, and images in messages stay where they are.
    """
    asked = [turn for turn in turns if turn.role == "user"]
    parts = images_of(asked)
    values, first = merged_images(parts, media.images, root, location)
    texts = [piece for turn in asked for piece in turn.pieces if isinstance(piece, str)] or [""]
    videos, audios = media.videos, media.audios or audio_tracks(media.videos, texts)
    fields = ["a user turn"] * len(texts)
    texts = place_marks(texts, len(values), location, fields, videos=len(videos), audios=len(audios))
    marked = {kind for kind, mark in MARKS.items() if any(mark in text for text in texts)}
    counts = {"image": first if parts else len(values), "video": len(videos), "audio": len(audios)}
    front = [{"type": kind} for kind, count in counts.items() if kind not in marked for _ in range(count)]
    pieces, written = iter(texts), list[Message]()
    for turn in turns:
        if turn.role != "user":
            written.append(_other_turn(turn, location))
            continue
        content: list[dict[str, str]] = front
        front = []
        for piece in turn.pieces:
            if isinstance(piece, ImagePart):
                content += [] if "image" in marked else [{"type": "image"}]
            else:
                content += _split(next(pieces))
        only_text = all(part["type"] == "text" for part in content)
        whole = "".join(part["text"] for part in content) if only_text else content
        written.append({"role": "user", "content": whole})
    images = tuple(read_image(value, root, location) for value in values)
    return Conversation(location, tuple(written), images, videos=videos, audios=audios)


def _other_turn(turn: Turn, location: str) -> Message:
    if any(isinstance(piece, ImagePart) for piece in turn.pieces):
        raise DataError(f"{location}: an image in a {turn.role} turn is not supported; move it to the user's turn")
    if turn.role == "assistant" and not turn.text.strip():
        raise DataError(f"{location}: an assistant turn is empty; remove the row, or the turn")
    if turn.role == "system":
        check_text(turn.text, "a system turn", location)
    return {"role": turn.role, "content": turn.text}


def _split(text: str) -> list[dict[str, str]]:
    """Split a text at its marks into text parts and media parts, in order."""
    kinds, pieces = split_at_marks(text, list(MARKS))
    parts: list[dict[str, str]] = []
    for kind, piece in zip(["", *kinds], pieces, strict=True):
        parts += [{"type": kind}] if kind else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts
