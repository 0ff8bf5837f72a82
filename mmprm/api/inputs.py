"""Convert Python arguments (settings, rows, images) to the forms that the commands read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from mmprm.config import Config, build, merged, read_yaml
from mmprm.data.cells import Row, cut
from mmprm.data.columns import Columns
from mmprm.errors import ConfigError, DataError, MmprmError
from mmprm.problems import ProblemReader, ProblemsConfig
from mmprm.types import ImageRef, Problem

_C = TypeVar("C", bound=Config)
AnyPath = str | os.PathLike[str]

_INSTEAD = {
    "--help lists the keys": "help(mmprm.{caller}) names the command whose --help lists the keys",
    "(columns.images)": "(images)",
    ", or set columns.images": "",
    ", or set problems.image_root": "",
}
"""Maps phrases of error messages to replacements for callers of the Python API."""

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
"""Pillow image modes that PNG can store; others, such as CMYK, are converted to RGB."""


def check_argument(value: Any, kinds: type | UnionType, caller: str, name: str, expected: str) -> None:
    """Raise ConfigError unless `value` is an instance of `kinds`; the error names the argument and the value's type."""
    if not isinstance(value, kinds):
        raise ConfigError(
            f"mmprm.{caller}: {name}={cut(repr(value))} is of type {type(value).__name__}; pass {expected}"
        )


def check_path(value: Any, caller: str, name: str) -> None:
    """Raise ConfigError unless `value` is a path."""
    check_argument(value, str | os.PathLike, caller, name, "a path, as a str or a pathlib.Path")


def configured(model: type[_C], caller: str, settings: Mapping[str, Any], file: AnyPath | None = None) -> _C:
    """Build a configuration from a YAML file and from `settings`, which override the file's values.

    `settings` are nested as in the file. Raises ConfigError naming `caller` or the file for an unknown key or an
    invalid value.
    """
    if file is not None:
        check_path(file, caller, "config")
    values = {} if file is None else read_yaml(Path(file))
    try:
        return build(model, merged(values, _without_paths(settings)), source=f"mmprm.{caller}")
    except ConfigError as error:
        raise _in_terms_of_arguments(error, caller) from error


def asked_problem(question: str, images: Any, choices: Sequence[str], caller: str) -> Problem:
    """Build a problem without a gold answer; relative image paths are resolved against the working directory."""
    if not isinstance(question, str) or not question.strip():
        raise DataError(
            f"mmprm.{caller}: question={cut(repr(question))} must be non-blank text; give the question as asked"
        )
    check_argument(choices, list | tuple, caller, "choices", "a list with the text of each choice")
    for index, choice in enumerate(choices):
        check_argument(choice, str, caller, f"choices[{index}]", "the text of the choice")
    row = {"question": question, "images": cell_value(images, f"mmprm.{caller}: images"), "choices": list(choices)}
    try:
        asked = ProblemReader(Columns(), Path.cwd()).asked(row, f"mmprm.{caller}")
    except DataError as error:
        raise _in_terms_of_arguments(error, caller) from error
    return asked.without_answer(f"mmprm.{caller}")


def _in_terms_of_arguments(error: MmprmError, caller: str) -> MmprmError:
    """Return a copy of the error whose message names Python arguments instead of a command's keys and options."""
    text = str(error)
    for phrase, instead in _INSTEAD.items():
        text = text.replace(phrase, instead.format(caller=caller))
    return type(error)(text)


def read_problems(given: Iterable[Problem | Row], config: ProblemsConfig, episodes: bool = False) -> Iterator[Problem]:
    """Yield `Problem` objects unchanged, and convert dict rows to problems. Raises DataError naming the index of any
    other item.

    With `episodes`, the problems are played in an environment and need no answer.
    """
    reader = ProblemReader(config.columns, Path(config.image_root or "").absolute(), episodes, config.video_frames)
    for index, item in enumerate(given):
        location = f"problems[{index}]"
        if isinstance(item, Problem):
            yield item
        elif isinstance(item, Mapping):
            row = {name: cell_value(value, f"{location}: {name}") for name, value in item.items()}
            yield reader.problem(row, location)
        else:
            raise DataError(
                f"{location}={cut(repr(item))} must be a Problem or a dict; pass one with question and answer"
            )
    reader.tell()


def cell_value(value: Any, location: str) -> Any:
    """Convert a value to the form that it would have in a data file: images become paths or encoded bytes."""
    if isinstance(value, ImageRef):
        return value.path if value.data is None else value.data
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [cell_value(item, location) for item in value]
    if hasattr(value, "getexif"):  # a Pillow image, as `datasets` decodes them
        return _png(value, location)
    if len(getattr(value, "shape", ())) > 1:
        raise DataError(
            f"{location}: an array of shape {tuple(value.shape)} is not an image; convert it with PIL.Image.fromarray"
        )
    return value


def _png(image: Any, location: str) -> bytes:
    from PIL import ImageOps

    width, height = image.size
    if not width or not height:
        raise DataError(f"{location}: the image has {width} × {height} pixels; give one that is not empty")
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG")
    return buffer.getvalue()


def _without_paths(value: Any) -> Any:
    """Convert every path object to a string, as configurations expect."""
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
