"""Map columns to problem fields by configured or default names, and detect fields that several columns provide."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mmprm.config import Config
from mmprm.data.cells import Row, as_builtin, cut, find, is_empty, names_of, top_of
from mmprm.data.chat import is_chat
from mmprm.data.choices import LETTERS
from mmprm.data.image_cells import looks_like_image
from mmprm.errors import DataError

USUAL = {
    "id": ("id", "problem_id", "unique_id"),
    "question": ("question", "problem"),
    "answer": ("answer", "reward_model.ground_truth"),
    "images": ("pictures", "image", "images", "image_path", "image_paths", "image_url", "image_urls"),
    "videos": ("video", "videos", "video_path", "video_paths"),
    "audios": ("audio", "audios", "audio_path", "audio_paths"),
    "choices": ("choices", "options", "answer_choices"),
    "solution": ("solution",),
    "chat": ("message", "messages", "conversations"),
}
"""Default column names of each field, in order of precedence. They apply if no column is configured."""

PROMPT = "prompt"
"""Column that holds chat messages (verl, TRL) or a question (OpenRLHF) if no other column does."""

NUMBERED_IMAGE = re.compile(r"image_?(\d+)")
"""Matches numbered image columns such as image_1, as in MMMU and OlympiadBench."""

_LETTERED_COLUMN = re.compile(r"(?:options?|choices?|opt?|(?=[A-Z]\Z))[_ ]?([A-Z]|\d)", re.IGNORECASE)
_MEDIA = re.compile(
    r"(?:.*_)?(?:video|audio)s?(?:_?(?:path|url|uri|link|file|filename|name|id|bytes|base64|list)s?)?", re.IGNORECASE
)
_MEDIA_PATH = re.compile(
    r"\S{1,1000}\.(?:mp4|m4v|avi|mov|mkv|webm|mpe?g|flv|wmv|wav|mp3|flac|ogg|opus|m4a|aac)(?:\?\S*)?", re.IGNORECASE
)
_MEDIA_BYTES = re.compile(
    rb"....ftyp(?!avif|avis|hei|mif1)|\x1aE\xdf\xa3|RIFF....(?:WAVE|AVI )|ID3|OggS|fLaC", re.DOTALL
)
_IMAGE_NAME = re.compile(
    r"(?:\A|[_\W\d])(?:imgs?|images?|pictures?|pics?|figures?|photos?|diagrams?)(?:\Z|[_\W\d])", re.I
)
_SPEAKS_OF_IMAGE = re.compile(
    r"\b(?:images?|pictures?|figures?|photos?|photographs?|diagrams?|graphs?|charts?|plots?|shown|depicted)\b|图", re.I
)


class Columns(Config):
    """Maps each field of a problem to a column name; null detects the column by its default names. Dots select struct
    members (reward_model.ground_truth)."""

    id: str | None = None
    """Columns detected by default: id, problem_id, unique_id; if there is none, the id is a hash of the content."""
    question: str | None = None
    """Columns detected by default: question, problem; `prompt` also counts if it holds text."""
    answer: str | None = None
    """Columns detected by default: answer, reward_model.ground_truth (verl)."""
    images: str | Literal[False] | None = None
    """Columns detected by default: pictures, image, images, image_path, image_paths, image_url, image_urls, or image_1,
    image_2, …. A cell holds a path, bytes, base64, a data URL, {bytes, path}, or a list of them. false reads no images
    from columns.
    """
    videos: str | Literal[False] | None = None
    """Columns detected by default: video, videos, video_path, video_paths. A cell holds a path, bytes, {bytes, path},
    or a list of them. false reads none.
    """
    audios: str | Literal[False] | None = None
    """Columns detected by default: audio, audios, audio_path, audio_paths. Cells as for videos; a video's path gives
    its audio track. Without audio, the <audio> marks of a question stand for the audio tracks of its videos. false
    reads none.
    """
    choices: str | None = None
    """Columns of the answer options. By default, one of choices, options, answer_choices, or one column per option
    (A, B, … or option_a, …) is detected. A cell holds a list, a list as text, or {A: …, B: …}.
    """
    solution: str | None = None
    """Column detected by default: solution."""
    chat: str | None = None
    """Columns detected by default: message, messages, conversations; `prompt` also counts if it holds messages.
    Messages may be a JSON string; the user turns hold the question and the images.
    """


def is_usual(name: str) -> bool:
    """Return whether `name` is a default column of any field."""
    return (
        name == PROMPT or any(name in names for names in USUAL.values()) or NUMBERED_IMAGE.fullmatch(name) is not None
    )


def read_cell(row: Row, columns: Columns, field: str, location: str) -> Any:
    """Return a field's value from its configured or default column, or None if the value is empty or missing.

    Raises DataError if a configured column is missing. Empty cells count as missing.
    """
    found = cells_of(row, columns, field, location)
    return found[0][1] if found else None


def cells_of(row: Row, columns: Columns, field: str, location: str) -> list[tuple[str, Any]]:
    """Return (column, value) pairs of all columns that hold a value for a field, in order of precedence."""
    chosen = getattr(columns, field)
    if chosen is False:
        return []
    if chosen is not None:
        try:
            value = find(row, chosen)
        except KeyError:
            raise DataError(
                f"{location}: has no column {chosen!r} (columns.{field}), only {names_of(row)}; set columns.{field} to "
                "one of these"
            ) from None
        return [] if is_empty(value) else [(chosen, value)]
    found = list(_usual(row, field))
    if field == "images" and (numbered := _numbered_images(row)):
        found.append(numbered)
    # `prompt` holds messages in some data sets and a question in others, so it is only read as a last resort.
    if not found and field == "chat" and columns.question is None and is_chat(row.get(PROMPT)):
        found.append((PROMPT, as_builtin(row[PROMPT])))
    if not found and field == "question" and columns.chat is None and isinstance(row.get(PROMPT), str):
        found += [] if is_chat(row[PROMPT]) or is_empty(row[PROMPT]) else [(PROMPT, row[PROMPT])]
    return found


def missing_field(name: str, row: Row, location: str) -> DataError:
    """Return the error for a row that has no value for a field; it quotes any empty columns of that field."""
    shown = [f"{column} is {cut(repr(row[column]))}" for column in USUAL[name] if column in row]
    found = f" ({', '.join(shown)})" if shown else ""
    return DataError(f"{location}: has no {name}; it has {names_of(row)}{found}; set columns.{name}, or remove the row")


def _usual(row: Row, field: str) -> Iterator[tuple[str, Any]]:
    for name in USUAL[field]:
        if name not in row and "." not in name:
            continue
        try:
            value = find(row, name)
        except KeyError:
            continue
        if not is_empty(value):
            yield name, value


def _numbered_images(row: Row) -> tuple[str, list[Any]] | None:
    numbers = {int(match[1]): name for name in row if (match := NUMBERED_IMAGE.fullmatch(str(name)))}
    filled = [(numbers[number], as_builtin(row[numbers[number]])) for number in sorted(numbers)]
    filled = [(name, value) for name, value in filled if not is_empty(value)]
    return (filled[0][0], [value for _, value in filled]) if filled else None


def lettered_columns(row: Row) -> dict[str, str]:
    """Map labels to the columns that hold one option each: A, B, … (MMBench), option_a, choiceA, option_1, ….

    Returns {} for fewer than two. Single lower-case letters are not option columns.
    """
    named: dict[str, dict[str, str]] = {}
    for name in row:
        match = _LETTERED_COLUMN.fullmatch(str(name))
        if match and (str(name).isupper() or len(str(name)) > 1):
            named.setdefault(str(name)[: match.start(1)], {})[match[1].upper()] = name
    for columns in named.values():
        filled = {label: name for label, name in columns.items() if not is_empty(row[name])}
        for labels in (LETTERS, "0123456789", "123456789"):
            found = [filled[label] for label in itertools.takewhile(filled.__contains__, labels)]
            if len(found) > 1:
                return dict(zip(labels, found, strict=False))
    return {}


def only_one(found: list[tuple[str, Any]], field: str, location: str) -> Any:
    """Return a field's value from the first column that provides it, or None if no column does.

    Raises DataError if the texts of two columns differ and neither contains the other.
    """
    for name, value in found[1:]:
        first, other = (" ".join(str(text).split()) for text in (found[0][1], value))
        if not _agree(first, other):
            raise DataError(
                f"{location}: {found[0][0]} and {name} both hold the {field}, and differ ({cut(first)!r}, "
                f"{cut(other)!r}); set columns.{field} to one of them"
            )
    return found[0][1] if found else None


def _agree(one: str, other: str) -> bool:
    """Return whether one text contains the other as whole words (not "3" in "13"), or both are the same number."""

    def holds(text: str, part: str) -> bool:
        return re.search(rf"(?<![\w.,/-]){re.escape(part)}(?![\w/]|[.,]\d)", text) is not None

    try:
        return float(one) == float(other)
    except ValueError:
        return one == other or holds(one, other) or holds(other, one)


def rest_of(row: Row, used: set[str]) -> dict[str, Any]:
    """Return the columns that were not read in full: unused ones, and those of which only a part was read."""
    return {str(name): value for name, value in row.items() if name not in used}


def used_names(row: Row, found: list[tuple[str, Any]]) -> set[str]:
    """Return the names of the columns that were read in full."""
    return {name for name, _ in found if top_of(row, name) == name}


INTERLEAVED = "use_audio_in_video"
"""Name with which Qwen2.5-Omni's processor and its datasets ask for a video that is interleaved with its audio."""


def check_media(row: Row, columns: Columns | None, location: str) -> None:
    """Raise DataError for a column that holds video or audio and is not read. Without `columns`, none is read.

    Also refuses rows that ask for a video interleaved with its audio.
    """
    if row.get(INTERLEAVED):
        raise DataError(
            f"{location}: {INTERLEAVED} asks for a video interleaved with its audio, to which transformers and vLLM "
            "assign different positions, so that engine and trainer would disagree; remove it, and mark the audio as a "
            "separate item with <audio> after <video>"
        )
    way_out = "set columns.videos or columns.audios to it" if columns else "remove such rows"
    read = [name for field in ("videos", "audios") if columns for name in _read_names(columns, field)]
    for name, value in row.items():
        if any(name == top_of(row, each) for each in read):
            continue
        named = isinstance(name, str) and _MEDIA.fullmatch(name) and _may_be_file(value)
        if named or any(_is_media(part) for _, part in _parts(str(name), value)):
            raise DataError(
                f"{location}: column {name!r} holds {cut(as_builtin(value))!r}, a video or audio that is not read; "
                f"{way_out}, or remove the column if no question needs it"
            )


def _read_names(columns: Columns, field: str) -> tuple[str, ...]:
    """Return the columns of a field that are read, or that the user excluded with false."""
    chosen = getattr(columns, field)
    return (chosen,) if isinstance(chosen, str) else USUAL[field]


def check_unread_images(rest: Row, question: str, location: str) -> str | None:
    """Raise DataError if an unread column holds images, for a row in which no image was found.

    Otherwise, returns the name of a column that may hold images, judging by its name and the question, or None.
    """
    for name, value in (part for column in rest.items() for part in _parts(*column)):
        if looks_like_image(value):
            raise DataError(
                f"{location}: column {name!r} looks like images ({cut(as_builtin(value))!r}) and is not read; set "
                f"columns.images={name}, or columns.images=false to read none"
            )
    if not _SPEAKS_OF_IMAGE.search(question):
        return None
    return next((name for name, value in rest.items() if _IMAGE_NAME.search(name) and _may_be_file(value)), None)


def _parts(name: str, value: Any, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for a column and for each nested member of a struct in it."""
    value = as_builtin(value)
    yield name, value
    if isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            yield from _parts(f"{name}.{key}", inner, depth - 1)


def _is_media(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_media, value[:8]))
    if isinstance(value, bytes):
        return _MEDIA_BYTES.match(value) is not None
    return isinstance(value, str) and (
        _MEDIA_PATH.fullmatch(value.strip()) is not None or value.startswith(("data:video/", "data:audio/"))
    )


def _may_be_file(value: Any) -> bool:
    return not is_empty(value) and not isinstance(as_builtin(value), bool | int | float)
