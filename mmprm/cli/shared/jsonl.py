"""Read and write JSON lines."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mmprm.files import whole_file


def value_as_json(value: Any) -> Any:
    """Convert a value that JSON cannot represent to text; used as `default` of json.dumps."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, replacing the file atomically."""
    with output(path) as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[TextIO]:
    """Yield standard output if `path` is None, otherwise a file that is replaced atomically."""
    if path is None:
        yield sys.stdout
        return
    with whole_file(path) as file:
        yield file
