"""What a file of labelled paths that another program wrote may not do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from mmprm.errors import DataError
from mmprm.types import Problem

Split = Literal["train", "dev", "test"]

_TEXTS = ("problem_id", "question", "answer")


def check_row(row: dict[str, Any], place: str) -> None:
    """Raise DataError, naming the column, for a value that is missing where there must be one."""
    for name in _TEXTS:
        if not isinstance(row[name], str):
            raise DataError(f"{place}: {name} is {row[name]!r}, must be text; fill it in or leave the row out")
    if not row["problem_id"]:
        raise DataError(f"{place}: problem_id is empty; give each problem an id")
    if row["complete"] is None:
        raise DataError(f"{place}: complete is null, must be true for a whole solution and false for a part of one")
    steps = row["steps"]
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise DataError(f"{place}: steps must be a list of texts, without null; leave the row out")
    _check_images(row["images"], place)


def _check_images(images: Any, place: str) -> None:
    if images is None:
        return
    if not isinstance(images, list):
        raise DataError(f"{place}: images must be a list, got {type(images).__name__}; write a list of {{bytes, path}}")
    for image in images:
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
        if isinstance(data, bytes) or (data is None and isinstance(path, str) and path and "\0" not in path):
            continue
        raise DataError(f"{place}: images must hold bytes, or the path of a file, got {_short(image)}; mend the row")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_splits(splits: Iterable[str | None], file: str, way_out: str) -> None:
    """Raise DataError for a name that no command reads, such as validation: its rows would be lost in silence."""
    unknown = sorted(map(repr, set(splits) - set(get_args(Split))))
    if unknown:
        raise DataError(f"{file}: split must be train, dev or test, got {', '.join(unknown)}; {way_out}")


def check_images_below(problems: Iterable[Problem], root: Path, file: str) -> None:
    """Raise DataError for an image that does not lie below `root`: a file from elsewhere must not make a command copy
    or send what lies on this machine."""
    allowed = root.resolve()
    for problem in problems:
        for image in problem.pictures:
            if image.path is not None and not Path(image.path).resolve().is_relative_to(allowed):
                raise DataError(
                    f"{file}: problem {problem.id!r} names the image {image.path}, which is not below {root}; set "
                    "image_root to the folder of the images, if they are meant"
                )
