"""Loading problems: hub id, local Parquet, JSONL or JSON, with column maps; pictures stay closed until needed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mmprm.config import Config
from mmprm.errors import DataError
from mmprm.types import Picture, Problem

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Larger pictures are refused: no problem needs them, and a small file can unpack to gigabytes."""
MOST_ASPECT = 200
"""Longer side over shorter one; Qwen-VL's processors refuse more."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CANDIDATES = {
    "id": ("id", "problem_id", "unique_id"),
    "question": ("question", "problem"),
    "answer": ("answer",),
    "pictures": ("pictures", "image", "images", "image_path", "image_urls"),
    "choices": ("choices", "options"),
    "solution": ("solution",),
    "chat": ("message", "messages", "conversations"),
}
"""Columns that are tried, in order, for a field without a column of its own in the configuration."""


class Columns(Config):
    """Column of each field; null means the usual names."""

    id: str | None = None
    """Usual: id, problem_id, unique_id; without any, a hash of the content."""
    question: str | None = None
    """Usual: question, problem."""
    answer: str | None = None
    """Usual: answer."""
    pictures: str | None = None
    """Usual: pictures, image, images, image_path, image_urls; a path, bytes, {bytes, path}, or a list of them."""
    choices: str | None = None
    """Usual: choices, options."""
    solution: str | None = None
    """Usual: solution."""
    chat: str | None = None
    """Usual: message, messages, conversations; chat messages (also as a JSON string) whose user turns hold the question
    and the pictures."""


class ProblemsConfig(Config):
    path: str
    """A .jsonl, .json or .parquet file, a folder of Parquet files, or a hub id such as owner/name."""
    split: str = "train"
    """Split of a hub data set or of a folder of Parquet files (files named SPLIT-….parquet); else unused."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    columns: Columns = Columns()
    """Names of the columns."""
    images_root: str | None = None
    """Folder of relative picture paths; by default the folder of the file."""
    limit: int | None = Field(None, ge=1)
    """Read only so many problems from the start."""


def load_problems(config: ProblemsConfig) -> list[Problem]:
    """Read every problem, in file order; of one that occurs twice the first, with a note.

    Pictures are not opened here, so that one broken picture costs one problem later. Raises DataError naming file and
    line (or row) for a missing field, an empty answer, a line that is no JSON or two problems with one id.
    """
    root = pictures_root(config)
    problems: dict[str, tuple[str, Problem]] = {}
    repeated = []
    for place, row in itertools.islice(read_rows(config), config.limit):
        problem = read_problem(row, config.columns, root, place)
        first, before = problems.setdefault(problem.id, (place, problem))
        if before is problem:
            continue
        if _content(before) != _content(problem):
            raise DataError(
                f"{place}: id {problem.id!r} is that of another problem, at {first}; make ids unique, or drop the "
                "column to have them from content"
            )
        repeated.append(f"{place} is {first}")
    if not problems:
        raise DataError(f"{config.path}: holds no problem")
    if repeated:
        print(f"{len(repeated):,} problems occur again and are left out; {repeated[0]}", file=sys.stderr)
    return [problem for _, problem in problems.values()]


def _content(problem: Problem) -> str:
    return content_id(problem.question, problem.answer, problem.pictures, problem.choices)


def open_picture(picture: Picture) -> Image.Image:
    """Decode as RGB (transparency over white). Raises DataError naming the path, also for more than MAX_PIXELS
    or MOST_ASPECT."""
    from PIL import Image

    with _opened(picture, MAX_PIXELS) as image:
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def picture_size(picture: Picture, at_most: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) by the picture's header; nothing is decoded. Raises DataError as open_picture does."""
    with _opened(picture, at_most) as image:
        return image.size


def picture_pixels(picture: Picture, at_most: int = MAX_PIXELS) -> int:
    """Number of pixels, as picture_size."""
    width, height = picture_size(picture, at_most)
    return width * height


@contextmanager
def _opened(picture: Picture, at_most: int) -> Iterator[Image.Image]:
    from PIL import Image

    name = picture.path or f"picture of {len(picture.data or b'')} bytes"
    try:
        with Image.open(picture.path or io.BytesIO(picture.data or b""), formats=_FORMATS) as image:
            if image.width * image.height > at_most:
                raise DataError(f"{name}: {image.width}×{image.height} pixels, at most {at_most:,}; scale it down")
            if max(image.size) > MOST_ASPECT * min(image.size):
                raise DataError(
                    f"{name}: {image.width}×{image.height} pixels, one side at most {MOST_ASPECT} times the other; "
                    "crop it"
                )
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes of them.
        raise DataError(f"{name}: cannot be read as a picture ({type(error).__name__}: {error})") from error


def content_id(question: str, answer: str, pictures: Sequence[Picture] = (), choices: Sequence[str] = ()) -> str:
    """16 hexadecimal digits from question, answer, picture bytes and choices; a missing picture counts by its path."""
    digests = [hashlib.sha256(_bytes(picture)).hexdigest() for picture in pictures]
    text = json.dumps([question, answer, digests, *([list(choices)] if choices else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_problems(
    path: str | Path, problems: Iterable[Problem], columns: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write JSONL that load_problems reads back; pictures become files in `images/` beside it, named by content.

    `columns` holds, by problem id, what else to write in its line.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for problem in problems:
                row = {"id": problem.id, "question": problem.question, "answer": problem.answer}
                row |= {"pictures": [write_picture(picture, path.parent) for picture in problem.pictures]}
                row |= {"choices": list(problem.choices)} if problem.choices else {}
                row |= {"solution": problem.solution} if problem.solution is not None else {}
                row |= (columns or {}).get(problem.id, {})
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error


def pictures_root(config: ProblemsConfig) -> Path:
    """Folder of relative picture paths; absolute, since a store is read from other folders too."""
    path = Path(config.path)
    return Path(config.images_root or (path if path.is_dir() else path.parent)).absolute()


def read_rows(config: ProblemsConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Pairs (place for error messages, row), as they stand in the file."""
    path = Path(config.path)
    if path.is_dir():
        files = sorted({*path.rglob(f"{config.split}.parquet"), *path.rglob(f"{config.split}-*.parquet")})
        if not files:
            raise DataError(f"{path}: holds no {config.split}.parquet or {config.split}-….parquet; set problems.split")
        return itertools.chain.from_iterable(_parquet_rows(file) for file in files)
    if path.suffix in _READERS:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return _READERS[path.suffix](path)
    if path.exists() or not _HUB_ID.fullmatch(config.path):
        raise DataError(f"{path}: must be a .jsonl, .json or .parquet file, a folder of Parquet files, or a hub id")
    return _hub_rows(config)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _row(_parse(line, place), place)


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    items = _parse(path.read_bytes(), str(path))
    if not isinstance(items, list):
        raise DataError(f"{path}: must hold a list of problems, got {type(items).__name__}")
    for number, item in enumerate(items, start=1):
        place = f"{path}: item {number}"
        yield place, _row(item, place)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not readable Parquet ({error})") from error


_READERS = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}


def _hub_rows(config: ProblemsConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    try:
        table = datasets.load_dataset(config.path, config.subset, split=config.split)
    except Exception as error:  # The hub client has no common base for "no network", "no such set" and "no such split".
        raise DataError(f"{config.path} (split {config.split}): cannot be loaded from the hub: {error}") from error
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    for number, row in enumerate(table, start=1):
        yield f"{config.path}[{config.split}]: row {number}", row


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: is not JSON: {error}") from error


def _row(item: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{place}: must be an object with question and answer, got {type(item).__name__}")
    return item


def read_cell(row: Mapping[str, Any], columns: Columns, field: str, place: str) -> Any:
    """What a row holds for a field, by the column named for it or by the usual ones; None where it holds nothing."""
    chosen = getattr(columns, field)
    if chosen is not None and chosen not in row:
        raise DataError(f"{place}: has no column {chosen!r} (columns.{field}); it has {', '.join(row)}")
    names = [chosen] if chosen is not None else _CANDIDATES[field]
    return next((row[name] for name in names if row.get(name) is not None), None)


def read_problem(row: Mapping[str, Any], columns: Columns, root: Path, place: str) -> Problem:
    """Raises DataError, naming the place, for a row without question or answer."""

    def cell(field: str) -> Any:
        return read_cell(row, columns, field, place)

    raw_pictures = listed(cell("pictures"))
    question = cell("question")
    if question is None and (chat := cell("chat")) is not None:
        question, from_chat, marks = _from_chat(chat, place)
        if marks and marks != len(raw_pictures):
            raise DataError(
                f"{place}: its messages have {marks} places for pictures of a column, and there are "
                f"{len(raw_pictures)}; set columns.pictures, or put the pictures into the messages"
            )
        raw_pictures += listed(from_chat)
    answer = _answer_text(cell("answer"))
    for name, value in (("question", question), ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{place}: has no {name}; it has {', '.join(row)} (set columns.{name}, or remove the row)")
    pictures = tuple(read_picture(value, root, place) for value in raw_pictures)
    if pictures:
        # Marks at the very front say no more than that the pictures come first, which is the rule anyway.
        question = re.sub(r"\A(?:\s*<image>)+\s*", "", question)
    choices = cell("choices") or ()
    if not isinstance(choices, list | tuple):
        raise DataError(f"{place}: choices must be a list, got {str(choices)[:60]!r}; make it one, or drop the column")
    choices = tuple(map(str, choices))
    own_id, solution = cell("id"), cell("solution")
    return Problem(
        id=str(own_id) if own_id not in (None, "") else content_id(question, answer, pictures, choices),
        question=question,
        answer=answer,
        pictures=pictures,
        choices=choices,
        solution=solution if solution is None else str(solution),
    )


def _answer_text(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "\n".join(str(item) for item in value)
    return value if value is None else str(value)


def _from_chat(chat: Any, place: str) -> tuple[str, list[Any], int]:
    """Question and raw pictures of the user turns: {role, content} or {from, value}, content as text or as parts; and
    the number of parts that only mark where a picture of the column stands."""
    turns = _parse(chat.encode(), f"{place} (chat messages)") if isinstance(chat, str) else chat
    texts: list[str] = []
    pictures: list[Any] = []
    marks = 0
    try:
        for turn in turns:
            if (turn.get("role") or turn.get("from")) not in ("user", "human"):
                continue
            content = turn.get("content") or turn.get("value") or ""
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "text":
                    texts.append(part["text"])
                elif (picture := picture_of(part)) is None:
                    texts.append("<image>")
                    marks += 1
                else:
                    pictures.append(picture)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place}: chat messages are not of a known form ({type(error).__name__}: {error})") from error
    return "\n".join(texts), pictures, marks


def picture_of(part: Mapping[str, Any]) -> Any:
    """What a part of a message shows, under its type (image, image_url, …), url or path; None where it says no more
    than that a picture stands there. KeyError for other keys."""
    given = {key: value for key, value in part.items() if key != "type" and value not in (None, "")}
    if not given:
        return None
    return given[next((key for key in (part["type"], "url", "path") if key in given), part["type"])]


def listed(value: Any) -> list[Any]:
    """The pictures that a cell holds: one or a list of them, empty ones left out."""
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if item is not None and item != ""]


def read_picture(value: Any, root: Path, place: str) -> Picture:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, bytes):
        return Picture(data=value)
    if not isinstance(value, str) or value.startswith(("http://", "https://")):
        raise DataError(f"{place}: a picture must be a path or bytes, got {str(value)[:60]!r}; download it first")
    if value.startswith("data:"):
        try:
            return Picture(data=base64.b64decode(value.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise DataError(f"{place}: the picture's data URL is not base64 ({error})") from error
    return Picture(path=str(root / value.removeprefix("file://")))


def _bytes(picture: Picture) -> bytes:
    if picture.data is not None:
        return picture.data
    try:
        return Path(picture.path or "").read_bytes()
    except OSError:
        return (picture.path or "").encode()


def write_picture(picture: Picture, folder: Path) -> str:
    """Copy to `images/` in the folder, named by content; returns the path from the folder."""
    data = picture.data if picture.data is not None else Path(picture.path or "").read_bytes()
    target = folder / "images" / f"{hashlib.sha256(data).hexdigest()[:16]}{_suffix(picture)}"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    return str(target.relative_to(folder))


def _suffix(picture: Picture) -> str:
    return Path(picture.path).suffix if picture.path else ".png"
