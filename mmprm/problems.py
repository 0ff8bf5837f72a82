"""Read problems from table rows with columns for question, answer, images and options."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mmprm.config import PathText
from mmprm.data.answer import answer_text
from mmprm.data.cells import Row, check_characters, cut
from mmprm.data.choices import check_choices, labeled_choices, letter_of_label, unread_options
from mmprm.data.columns import (
    Columns,
    cells_of,
    check_media,
    check_unread_images,
    is_usual,
    lettered_columns,
    missing_field,
    only_one,
    read_cell,
    rest_of,
    used_names,
)
from mmprm.data.image_cells import check_types, listed, read_image
from mmprm.data.images import MAX_PIXELS, image_pixels, image_size, open_image, write_image
from mmprm.data.layouts import with_usual_columns
from mmprm.data.marks import place_marks
from mmprm.data.media import MAX_FRAMES, media_digest, write_media
from mmprm.data.media_cells import audio_tracks, read_audios, read_videos
from mmprm.data.question import column_images, read_question
from mmprm.data.rows import RowsConfig, read_rows
from mmprm.errors import DataError
from mmprm.files import whole_file
from mmprm.types import AudioRef, ImageRef, MediaRef, Problem, VideoRef

__all__ = [
    "MAX_PIXELS",
    "Columns",
    "ProblemReader",
    "ProblemsConfig",
    "content_id",
    "image_folder",
    "image_pixels",
    "image_size",
    "listed",
    "load_problems",
    "open_image",
    "read_cell",
    "read_image",
    "read_problem",
    "read_rows",
    "write_image",
    "write_problems",
]


VIDEO_FRAMES = 8
"""Default number of frames per video."""


class ProblemsConfig(RowsConfig):
    """Configures the problem file: its rows, columns and image folder."""

    columns: Columns = Columns()
    """Names of the columns to read."""
    image_root: PathText | None = None
    """Folder that relative paths of images, videos and audio refer to; defaults to the folder of the problem file."""
    video_frames: int = Field(VIDEO_FRAMES, ge=1, le=MAX_FRAMES)
    """Number of frames that are sampled from each video, evenly from the first to the last."""


def load_problems(config: ProblemsConfig, episodes: bool = False) -> list[Problem]:
    """Load all problems in file order; exact duplicates are dropped with a note.

    With `episodes`, the problems are played in an environment: they need no answer, and all columns of a row belong to
    its problem. Images are not opened here, so a broken image later affects only its own problem.

    Raises DataError, with the file and line (or row), for a missing field, an empty answer, invalid JSON, or if two
    different problems have the same id.
    """
    reader = ProblemReader(config.columns, image_folder(config), episodes, config.video_frames)
    problems: dict[str, tuple[str, Problem]] = {}
    repeated = []
    for location, row in read_rows(config):
        problem = reader.problem(row, location)
        first, before = problems.setdefault(problem.id, (location, problem))
        if before is problem:
            continue
        if _content(before) != _content(problem) or (episodes and before.extra != problem.extra):
            raise DataError(
                f"{location}: id {cut(problem.id)!r} belongs to another problem already, at {first}; make the ids "
                "unique, or remove the column to derive ids from the content"
            )
        repeated.append(f"{location} is {first}")
    if not problems:
        raise DataError(f"{config.path}: holds no problem; check the path, the split and the columns")
    reader.tell()
    _tell_missing([problem for _, problem in problems.values()])
    if repeated:
        print(f"{len(repeated):,} duplicate problems are left out; {repeated[0]}", file=sys.stderr)
    return [problem for _, problem in problems.values()]


def _tell_missing(problems: Sequence[Problem]) -> None:
    """Report missing media files before the run starts, because a wrong image root would make every problem fail
    later."""
    media = ((problem.id, each) for problem in problems for each in problem.media)
    missing = {name: each.path for name, each in media if not _is_at_hand(each)}
    if missing:
        shown = f"{len(missing):,} of {len(problems):,} problems name files that do not exist"
        print(f"{shown}, for example {next(iter(missing.values()))}; set problems.image_root", file=sys.stderr)


def image_folder(config: ProblemsConfig) -> Path:
    """Return the folder that relative image paths refer to, as an absolute path."""
    path = Path(config.path)
    return Path(config.image_root or (path if os.path.isdir(path) else path.parent)).absolute()


@dataclass(frozen=True, slots=True)
class Asked:
    """Holds the question parsed from a row, with its media and answer choices.

    `labels` are the labels of the row's answer choices, `said` is the final answer in its messages, and `used` are the
    columns that were read.
    """

    question: str
    images: tuple[ImageRef, ...]
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    said: str
    used: frozenset[str]
    videos: tuple[VideoRef, ...] = ()
    audios: tuple[AudioRef, ...] = ()

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """Return the images, videos and audio recordings, in this order."""
        return (*self.images, *self.videos, *self.audios)

    def without_answer(self, name: str) -> Problem:
        """Return the question as a problem without a gold answer, with the id `name`."""
        return Problem(name, self.question, "", self.images, self.choices, videos=self.videos, audios=self.audios)


class ProblemReader:
    """Converts rows to problems one by one, and collects notes about the rows, which `tell` prints.

    With `episodes`, a problem needs no answer, and its other columns are part of its content id.
    """

    def __init__(self, columns: Columns, root: Path, episodes: bool = False, video_frames: int = VIDEO_FRAMES) -> None:
        self._columns, self._root, self._episodes, self._frames = columns, root, episodes, video_frames
        self._notes: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def problem(self, row: Row, location: str) -> Problem:
        """Convert a row to a problem. Raises DataError, with `location`, if the row is invalid."""
        row = with_usual_columns(row, self._columns)
        asked = self.asked(row, location)
        answers = cells_of(row, self._columns, "answer", location)
        written = answer_text(only_one(answers, "answer", location), answers, location)
        if not written.strip() and self._columns.answer is None:
            written = asked.said
        if not written.strip() and not self._episodes:
            raise missing_field("answer", row, location)
        answer = letter_of_label(asked.labels, written)
        check_choices(asked.choices, answers[0][1] if answers and answer == written else answer, location)
        ids, solutions = (cells_of(row, self._columns, field, location) for field in ("id", "solution"))
        for name, value in (*ids[:1], *solutions[:1]):
            if isinstance(value, dict | bytes):
                raise DataError(
                    f"{location}: {name} must be a text or number, got {cut(value)!r}; set columns.{name} to another "
                    "column"
                )
        solution = str(solutions[0][1]) if solutions else None
        texts = {"answer": answer, "id": str(ids[0][1]) if ids else "", "solution": solution or ""}
        check_characters(texts | {"question": asked.question, "choices": "".join(asked.choices)}, location)
        used = asked.used | used_names(row, answers) | used_names(row, ids[:1]) | used_names(row, solutions)
        rest = rest_of(row, set(used))
        if not asked.choices and (name := unread_options(rest, answer)) is not None:
            self._note(f"column {name!r} may hold options and is not read; set columns.choices", location)
        identity = json.dumps([answer, rest], sort_keys=True, default=_json_value) if self._episodes else answer
        return Problem(
            id=texts["id"] or content_id(asked.question, identity, asked.media, asked.choices),
            question=asked.question,
            answer=answer,
            images=asked.images,
            choices=asked.choices,
            solution=solution,
            extra=rest,
            videos=asked.videos,
            audios=asked.audios,
        )

    def observations(self, row: Row, location: str) -> tuple[tuple[str | ImageRef, ...], ...]:
        """Parse the column `observations` of an episode: per turn, a list of texts and of images as {"image": …}."""
        turns = row.get("observations") or []
        if not isinstance(turns, list) or not all(isinstance(parts, list) for parts in turns):
            raise DataError(
                f"{location}: observations must be a list of texts and images per turn, got {cut(turns)!r}; correct it"
            )
        return tuple(tuple(self._part(part, location) for part in parts) for parts in turns)

    def _part(self, part: Any, location: str) -> str | ImageRef:
        if isinstance(part, str):
            return part
        if not isinstance(part, dict) or part.keys() != {"image"}:
            raise DataError(
                f'{location}: a part of observations must be a text or {{"image": …}}, got {cut(part)!r}; correct it'
            )
        return read_image(part["image"], self._root, location, "observations")

    def asked(self, row: Row, location: str) -> Asked:
        """Parse the question of a row, without its gold answer.

        Raises DataError, with `location`, for a row with no question or with two conflicting ones. Also raises it for
        images that do not match the question's image placeholders, and for video, audio or images in unread columns.
        """
        columns, root = self._columns, self._root
        row = with_usual_columns(row, columns)
        check_media(row, columns, location)
        image_cells = cells_of(row, columns, "images", location)
        check_types(image_cells, location)
        found = read_question(row, columns, column_images(image_cells, root, location), root, location)
        if found.has_system:
            self._note("system turns are not read; set prompt.system instead", location)
        question = found.text
        if not isinstance(question, str) or not question.strip():
            raise missing_field("question", row, location)
        field = image_cells[0][0] if image_cells else "the messages"
        images = tuple(read_image(value, root, location, field) for value in found.images)
        choice_cells = cells_of(row, columns, "choices", location)
        lettered = {} if choice_cells or columns.choices else lettered_columns(row)
        value = choice_cells[0][1] if choice_cells else {label: row[name] for label, name in lettered.items()} or []
        labels, choices = labeled_choices(value, location)
        for name, other in choice_cells[1:]:
            if labeled_choices(other, location)[1] != choices:
                raise DataError(
                    f"{location}: {choice_cells[0][0]} and {name} both hold choices, but different ones; set "
                    "columns.choices"
                )
        video_cells, audio_cells = (cells_of(row, columns, field, location) for field in ("videos", "audios"))
        videos = read_videos(video_cells, self._frames, root, location)
        audios = read_audios(audio_cells, root, location) or audio_tracks(videos, (question, *choices))
        fields = ("question", *(f"choices[{number}]" for number in range(len(choices))))
        otherwise = "front" if found.one_for_all else "refuse"
        question, *placed = place_marks(
            (question, *choices), len(images), location, fields, otherwise, len(videos), len(audios)
        )
        cells = [*image_cells, *video_cells, *audio_cells, *choice_cells]
        used = found.used | used_names(row, cells) | {*lettered.values()}
        # MathVista's `image` names a file in another archive; the image itself is in another column.
        if columns.images is None and not any(map(_is_at_hand, images)):
            suspect = check_unread_images(rest_of(row, used), question, location)
            if suspect is not None:
                self._note(f"column {suspect!r} may hold images and is not read; set columns.images", location)
        return Asked(question, images, tuple(placed), labels, found.said, frozenset(used), videos, audios)

    def tell(self) -> None:
        """Print the collected notes: one line per kind of note, with the number of rows and the first row."""
        for text, count in self._notes.items():
            print(f"{self._first[text]}: {text} ({count:,} such rows)", file=sys.stderr)

    def _note(self, text: str, location: str) -> None:
        self._notes[text] += 1
        self._first.setdefault(text, location)


def read_problem(row: Row, columns: Columns, root: Path, location: str) -> Problem:
    """Convert a single row to a problem; see ProblemReader.problem."""
    return ProblemReader(columns, root).problem(row, location)


def _is_at_hand(media: MediaRef) -> bool:
    return media.path is None or os.path.exists(media.path)


def _content(problem: Problem) -> str:
    return content_id(problem.question, problem.answer, problem.media, problem.choices)


def content_id(question: str, answer: str, media: Sequence[MediaRef] = (), choices: Sequence[str] = ()) -> str:
    """Hash the question, answer, media files and choices to 16 hexadecimal digits.

    A missing file is hashed by its path.
    """
    digests = [media_digest(each) for each in media]
    text = json.dumps([question, answer, digests, *([list(choices)] if choices else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_problems(
    path: str | Path, problems: Iterable[Problem], columns: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write problems to a JSONL file for load_problems, and their images to the folder `images/` next to the file.

    Images are named by content hash. Videos and audio that are files stay where they are; others are written to
    `media/`. `columns` maps problem ids to extra columns for their lines.
    """
    path = Path(path)
    with whole_file(path) as file:
        for problem in problems:
            try:
                row = _written(problem, path.parent) | dict((columns or {}).get(problem.id, {}))
            except DataError as error:
                raise DataError(f"{path}: problem {problem.id!r} cannot be written: {error}") from error
            file.write(json.dumps(row, ensure_ascii=False, default=_json_value) + "\n")


def _written(problem: Problem, folder: Path) -> dict[str, Any]:
    """Convert a problem to a row: its own fields, followed by the extra columns of its source row."""
    row: dict[str, Any] = {"id": problem.id, "question": problem.question, "answer": problem.answer}
    row |= {"images": [write_image(image, folder) for image in problem.images]}
    for name, media in (("videos", problem.videos), ("audios", problem.audios)):
        row |= {name: [write_media(each, folder) for each in media]} if media else {}
    row |= {"choices": list(problem.choices)} if problem.choices else {}
    row |= {"solution": problem.solution} if problem.solution is not None else {}
    return row | {name: value for name, value in problem.extra.items() if not is_usual(name)}


def _json_value(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
