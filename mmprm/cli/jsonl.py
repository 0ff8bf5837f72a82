"""JSON lines in and out."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mmprm.errors import DataError
from mmprm.files import parse_json, whole_file


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs (FILE:LINE for error messages, object) of all lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _row(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _row(line: bytes, place: str) -> dict[str, Any]:
    row = parse_json(line, place)
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be an object, got {type(row).__name__}")
    return row


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with output(path) as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is complete."""
    if path is None:
        yield sys.stdout
        return
    with whole_file(path) as file:
        yield file
