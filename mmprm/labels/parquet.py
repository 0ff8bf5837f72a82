"""Write and read labeled paths as Parquet, one row per path, in a layout that `datasets` can load with images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from mmprm.data.cells import cut
from mmprm.data.choices import asked_question
from mmprm.data.media import media_digest
from mmprm.environments.interface import Observation
from mmprm.errors import DataError
from mmprm.files import whole_file
from mmprm.labels.checks import Split, check_row
from mmprm.labels.observations import observation_cells, read_observations
from mmprm.labels.schema import EARLIER_NAMES, SCHEMA, known_columns
from mmprm.types import AudioRef, Counts, ImageRef, LabeledPath, Problem, VideoRef

_ROW_GROUP = 2048
_ROW_GROUP_BYTES = 256 * 2**20
"""Maximum bytes of images per row group, apart from its last row. Arrow cannot hold 2 GiB of them in one column."""
_METADATA = "mmprm."
FLOAT32_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class LabeledExample:
    """Holds a labeled path with its problem and split.

    For each step, `judged` holds P(no error so far) according to the judge `judged_by`, or None if it was not judged.
    If the path is a given solution, `solution_id` and `author` identify it, and `disagreement` holds the largest
    difference between the values of several completers per step, or None. If the steps are turns of an episode,
    `observations` holds what the policy saw before each of them, and optionally what followed the last one.
    """

    problem: Problem
    path: LabeledPath
    split: Split
    judged: tuple[float | None, ...] | None = None
    judged_by: str | None = None
    solution_id: str | None = None
    author: str | None = None
    disagreement: tuple[float | None, ...] | None = None
    observations: tuple[Observation, ...] | None = None


def split_of(problem_id: str, seed: int, dev: float, test: float) -> Split:
    """Assign a problem to a split by a hash of (seed, problem), independently of all other problems."""
    digest = hashlib.sha256(f"{seed}/{problem_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if position < test else "dev" if position < test + dev else "train"


def write_parquet(
    path: str | Path, examples: Iterable[LabeledExample], metadata: Mapping[str, str] | None = None
) -> None:
    """Stream the examples to a file atomically; `metadata` states where imported labels come from."""
    path = Path(path)
    schema = SCHEMA.with_metadata({f"{_METADATA}{name}": value for name, value in (metadata or {}).items()})
    with (
        whole_file(path, "wb") as file,
        # A problem's paths repeat its images; with a large dictionary page, each image is stored once per row group.
        parquet.ParquetWriter(
            file,
            schema,
            compression="zstd",
            dictionary_pagesize_limit=256 * 2**20,
            write_page_checksum=True,  # otherwise a flipped bit could silently change a label
        ) as writer,
    ):
        for group in _row_groups(map(_row, examples)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in groups that fit in memory, also if each row holds the images of a whole episode."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += _image_bytes(row)
        if len(group) == _ROW_GROUP or size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _image_bytes(row: dict[str, Any]) -> int:
    parts = (part["image"] for parts in row["observations"] or () for part in parts)
    images = (image["bytes"] for image in row["images"])
    return sum(len(each or b"") for each in (*parts, *images))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the source, format and license of imported labels, or {} for labels computed by mmprm labels."""
    try:
        stored = parquet.read_schema(path).metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not readable Parquet ({error}); write it again with mmprm labels") from error
    named = {name.decode(): value.decode() for name, value in stored.items() if name.startswith(_METADATA.encode())}
    return {name.removeprefix(_METADATA): value for name, value in named.items()}


def read_parquet(path: str | Path, split: Split | None = None, turns: bool = False) -> list[LabeledExample]:
    """Read the examples of one split, or of all splits, in file order. Examples of the same problem share one Problem
    object.

    Raises DataError, with the row number, if two different problems have the same id. This can happen in concatenated
    files of several campaigns. It is also raised for labeled turns of episodes unless `turns` is True, because their
    steps mean nothing without the observations.
    """
    path = Path(path)
    problems: dict[str, Problem] = {}
    examples = []
    for number, row in enumerate(_rows(path), start=1):
        location = f"{path}: row {number}"
        check_row(row, location)
        # Rows of one problem share its object, so its images are held in memory only once.
        read = _problem(row, path.parent)
        problem = problems.setdefault(read.id, read)
        _check_same(problem, read, location)
        if split is None or row["split"] == split:
            disagreement = row.get("disagreement")
            observations = read_observations(row, location)
            if observations is not None and not turns:
                raise DataError(
                    f"{location}: its steps are turns of an environment, which this command cannot use; give it labels "
                    "of solutions, or read the file with read_parquet(turns=True)"
                )
            examples.append(
                LabeledExample(
                    problem,
                    _path(row, location),
                    row["split"],
                    *_judged(row, location),
                    solution_id=row.get("solution_id"),
                    author=row.get("author"),
                    disagreement=None if disagreement is None else tuple(disagreement),
                    observations=observations,
                )
            )
    return examples


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = known_columns(file.schema_arrow.names, path)
            found = 0
            for batch in file.iter_batches(batch_size=256, columns=names):
                found += batch.num_rows
                yield from _typed(batch, path).to_pylist()
            if found != file.metadata.num_rows:
                raise DataError(
                    f"{path}: is damaged: {found} of {file.metadata.num_rows} rows can be read; write it again"
                )
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; write it with mmprm labels") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: NUL in the path, or invalid UTF-8
        raise DataError(f"{path}: is not readable Parquet ({error}); write it again with mmprm labels") from error


def _typed(batch: pyarrow.RecordBatch, path: Path) -> pyarrow.Table:
    """Cast columns that other programs wrote with other types, such as 64-bit numbers, if the cast is lossless."""
    columns = []
    names = [EARLIER_NAMES.get(name, name) for name in batch.schema.names]
    for name, column in zip(names, batch.columns, strict=True):
        wanted = SCHEMA.field(name).type
        try:
            columns.append(column if name == "images" else column.cast(wanted))
        except pyarrow.ArrowException as error:
            raise DataError(
                f"{path}: column {name} has type {column.type} and must be {wanted} ({error}); cast it, or write the "
                "file with mmprm labels"
            ) from error
    return pyarrow.table(columns, names=names)


def _row(example: LabeledExample) -> dict[str, Any]:
    problem, path = example.problem, example.path

    def column(name: str) -> list[Any]:
        return [None if counts is None else getattr(counts, name) for counts in path.counts]

    return {
        "problem_id": problem.id,
        "question": asked_question(problem),
        "answer": problem.answer,
        "images": [{"bytes": image.data, "path": image.path} for image in problem.images],
        "steps": list(path.steps),
        "labels": column("value"),
        **{name: column(name) for name in ("correct", "incorrect", "unknown")},
        "complete": path.complete,
        "split": example.split,
        "judge": None if example.judged is None else list(example.judged),
        "judged_by": example.judged_by,
        "root_value": path.root_value,
        "solution_id": example.solution_id,
        "author": example.author,
        "disagreement": None if example.disagreement is None else list(example.disagreement),
        "observations": observation_cells(example.observations),
        "videos": [
            {"bytes": each.data, "path": _absolute(each.path), "frames": each.frames} for each in problem.videos
        ],
        "audios": [{"bytes": each.data, "path": _absolute(each.path)} for each in problem.audios],
    }


def _problem(row: dict[str, Any], folder: Path) -> Problem:
    images = tuple(
        ImageRef(path=_found(image["path"], folder)) if image.get("bytes") is None else ImageRef(data=image["bytes"])
        for image in row["images"] or ()
    )
    videos = (VideoRef(**_place(each, folder), frames=each["frames"]) for each in row.get("videos") or ())
    audios = (AudioRef(**_place(each, folder)) for each in row.get("audios") or ())
    texts = {"id": row["problem_id"], "question": row["question"], "answer": row["answer"]}
    return Problem(**texts, images=images, videos=tuple(videos), audios=tuple(audios))


def _place(cell: dict[str, Any], folder: Path) -> dict[str, Any]:
    data = cell.get("bytes")
    return {"path": _found(cell["path"], folder)} if data is None else {"data": data}


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def _found(path: str, folder: Path) -> str:
    """Resolve an image path relative to the Parquet file's folder, or return it unchanged if no such file exists."""
    beside = folder / path
    return str(beside) if beside.is_file() else path


def _check_same(problem: Problem, other: Problem, location: str) -> None:
    """Raise DataError if two rows with the same id have different problems."""
    if problem == other:
        return
    for name in ("question", "answer"):
        one, two = getattr(problem, name), getattr(other, name)
        if one != two:
            raise DataError(
                f"{location}: problem_id {cut(other.id)!r} already belongs to a different problem: {name} is "
                f"{cut(two)!r}, but was {cut(one)!r}; use unique ids in joined files, then label them again"
            )
    if list(map(media_digest, problem.media)) != list(map(media_digest, other.media)):
        raise DataError(
            f"{location}: problem_id {cut(other.id)!r} already belongs to a different problem, with other images, "
            "videos or audio; use unique ids in joined files, then label them again"
        )


def _path(row: dict[str, Any], location: str) -> LabeledPath:
    columns: Sequence[list[Any]] = [row[name] or [] for name in ("correct", "incorrect", "unknown", "labels")]
    if any(len(column) != len(row["steps"]) for column in columns):
        raise DataError(
            f"{location}: has {len(row['steps'])} steps but lists of other lengths in correct, incorrect, unknown or "
            "labels; give one value per step"
        )
    counts = tuple(_counts(*step, location) for step in zip(*columns, strict=True))
    root = row.get("root_value")
    if root is not None and not 0 <= root <= 1:
        raise DataError(f"{location}: root_value={root} must lie in [0, 1]; correct it, or write null")
    return LabeledPath(row["problem_id"], tuple(row["steps"]), counts, row["complete"], root)


def _judged(row: dict[str, Any], location: str) -> tuple[tuple[float | None, ...] | None, str | None]:
    judged = row.get("judge")
    if judged is None:
        return None, None
    if len(judged) != len(row["steps"]) or not all(value is None or 0 <= value <= 1 for value in judged):
        raise DataError(
            f"{location}: judge={judged} must hold a probability or null for each of the {len(row['steps'])} steps; "
            "correct it, or run mmprm consensus again"
        )
    return tuple(judged), row.get("judged_by")


def _counts(
    correct: int | None, incorrect: int | None, unknown: int | None, label: float | None, location: str
) -> Counts | None:
    if correct is None or incorrect is None:
        return None
    if correct < 0 or incorrect < 0 or correct + incorrect == 0:
        raise DataError(
            f"{location}: counts correct={correct}, incorrect={incorrect} must not be negative and must not both be 0; "
            "write null for a step without a label"
        )
    counts = Counts(correct, incorrect, unknown or 0)
    # A label that differs from correct / known is an estimate corrected for a stopping rule; see trees.stopping.
    if label is None or abs(label - counts.value) < FLOAT32_ROUNDING:
        return counts
    if not 0 <= label <= 1:
        raise DataError(f"{location}: labels={label} must lie in [0, 1]; correct it, or write null counts")
    return replace(counts, estimate=label)
