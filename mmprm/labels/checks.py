"""Validate files of labeled paths written by other programs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from mmprm.data.media_inputs import MEDIA_KINDS
from mmprm.errors import DataError
from mmprm.types import Problem

Split = Literal["train", "dev", "test"]

_TEXTS = ("problem_id", "question", "answer")


def check_row(row: dict[str, Any], location: str) -> None:
    """Raise DataError, naming the column, if the row has a missing or invalid value."""
    for name in _TEXTS:
        if not isinstance(row[name], str):
            raise DataError(f"{location}: {name}={row[name]!r} must be text; fill it in or remove the row")
    if not row["problem_id"]:
        raise DataError(f"{location}: problem_id is empty; give each problem an id")
    if row["complete"] is None:
        raise DataError(
            f"{location}: complete is null; set it to true for a complete solution or false for a partial one"
        )
    steps = row["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise DataError(f"{location}: steps must be a list of texts without null; correct or remove the row")
    _check_images(row["images"], location)


def _check_images(images: Any, location: str) -> None:
    if images is None:
        return
    if not isinstance(images, list):
        raise DataError(
            f"{location}: images must be a list, got {type(images).__name__}; write a list of {{bytes, path}}"
        )
    for image in images:
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
        if isinstance(data, bytes) or (data is None and isinstance(path, str) and path and "\0" not in path):
            continue
        raise DataError(
            f"{location}: images must hold bytes or the path of a file, got {_short(image)}; correct or remove the row"
        )


def _short(value: Any) -> str:
    """Return the value's repr, truncated to 81 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_splits(splits: Iterable[str | None], file: str, way_out: str) -> None:
    """Raise DataError for split names that no command reads, such as validation, because their rows would be
    ignored."""
    unknown = sorted(map(repr, set(splits) - set(get_args(Split))))
    if unknown:
        raise DataError(f"{file}: split must be train, dev or test, got {', '.join(unknown)}; {way_out}")


def check_images_below(problems: Iterable[Problem], root: Path, file: str) -> None:
    """Raise DataError if an image, video or audio recording is outside of `root`.

    Otherwise an untrusted file could make a command copy or send arbitrary files from this machine.
    """
    allowed = root.resolve()
    for problem in problems:
        for each in problem.media:
            if each.path is not None and not Path(each.path).resolve().is_relative_to(allowed):
                raise DataError(
                    f"{file}: problem {problem.id!r} has the {MEDIA_KINDS[type(each)]} {each.path}, which is not below "
                    f"{root}; if you trust the file, set image_root to the folder of such files"
                )
