"""Read rows from JSON: one object per line, a list of objects, or concatenated objects. Errors name the line."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mmprm.data.cells import MAX_DEPTH, cut, is_too_deep
from mmprm.errors import DataError
from mmprm.files import parse_json

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Iterator over (location, row) pairs; the location is quoted in error messages."""

READING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Exceptions that reading a compressed file may raise."""

_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_ROWS = {"data", "rows", "examples", "instances", "problems", "questions", "samples", "items", "records"}
_BLANK = re.compile(r"\s*")


def parse_strict_json(text: bytes | str, location: str) -> Any:
    """Parse JSON from other programs with strict checks.

    Raises DataError for invalid JSON, for nesting deeper than MAX_DEPTH, for a key given twice with different values,
    and for a lone surrogate. Neither files nor tokenizers accept lone surrogates.
    """
    try:
        value = parse_json(text, location, object_hook=_object)
    except _GivenTwiceError as error:
        raise DataError(f"{location}: {error} is given twice, with different values; keep one of them") from None
    encoded = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if encoded.count(b"[") + encoded.count(b"{") > MAX_DEPTH and is_too_deep(value):
        raise DataError(f"{location}: is nested deeper than {MAX_DEPTH} levels; flatten it")
    if _HALF_PAIR.search(encoded) and (path := _half_pair(value)) is not None:
        raise DataError(
            f"{location}: {path or 'the text'} holds half of a surrogate pair, which is not valid text; remove it"
        )
    return value


class _GivenTwiceError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise _GivenTwiceError(repr(cut(name)))
    return found


def _half_pair(value: Any, path: str = "") -> str | None:
    """Return the path to a string that contains a lone surrogate, or None if there is no such string."""
    if isinstance(value, str):
        return path if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if isinstance(name, str) and _half_pair(name) is not None:
            return "the name of a column"
        if (found := _half_pair(inner, f"{path}.{name}".lstrip("."))) is not None:
            return found
    return None


def open_packed(path: Path) -> BinaryIO:
    """Open a file for reading, decompressing it if its suffix is .gz, .bz2 or .xz."""
    packed: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return packed.get(path.suffix.lower(), lambda name: name.open("rb"))(path)


def jsonl_rows(path: Path) -> Rows:
    """Yield the rows of a .jsonl file, which holds JSON Lines or one JSON list."""
    try:
        with open_packed(path) as file:
            for number, line in enumerate(file, start=1):
                line = without_bom(line, path) if number == 1 else line
                if not line.strip():
                    continue
                location = f"{path}:{number}"
                if line.lstrip().startswith(b"["):
                    yield from _listed_rows(line + file.read(), path, location)
                    return
                yield location, _row(parse_strict_json(line, location), location)
    except READING_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read ({error}); check the file and its permissions, or write it again"
        ) from error


def _listed_rows(text: bytes, path: Path, location: str) -> Rows:
    """Yield the objects of a JSON list in a .jsonl file."""
    items = parse_strict_json(text, location)
    if not any(isinstance(item, dict) for item in items):
        raise DataError(f"{location}: must be an object, got list; write one object per line")
    return _items(items, path)


def json_rows(path: Path) -> Rows:
    """Yield the rows of a .json file, which holds a list of objects, concatenated objects, or JSON Lines."""
    try:
        with open_packed(path) as file:
            text = without_bom(file.read(), path)
    except READING_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read ({error}); check the file and its permissions, or write it again"
        ) from error
    if text.lstrip().startswith(b"{") and not _is_json(text):
        # If the first line is valid JSON, the file is JSON Lines; that reader names the damaged line.
        lines = _is_json(text.lstrip().partition(b"\n")[0])
        return jsonl_rows(path) if lines else _objects(text, path)
    items = parse_strict_json(text, str(path))
    if isinstance(items, dict):
        items = _rows_inside(items, path)
    if not isinstance(items, list):
        raise DataError(
            f"{path}: must hold a list of objects or one object per line, got {type(items).__name__}; write one object "
            "per line"
        )
    return _items(items, path)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except RecursionError:  # parse_strict_json reports the error
        return True
    except ValueError:
        return False
    return True


def _objects(text: bytes, path: Path) -> Rows:
    """Yield concatenated JSON objects, each of which may span several lines."""
    try:
        whole, start = text.decode().rstrip(), 0
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error}; save it as UTF-8") from error
    for number in itertools.count(1):
        start = _BLANK.match(whole, start).end()  # type: ignore[union-attr]
        if start == len(whole):
            return
        location = f"{path}: item {number}"
        try:
            end = json.JSONDecoder().raw_decode(whole, start)[1]
        except (ValueError, RecursionError) as error:
            raise DataError(f"{location}: is not JSON: {error}; correct it") from error
        yield location, _row(parse_strict_json(whole[start:end], location), location)
        start = end


def _rows_inside(wrapper: dict[str, Any], path: Path) -> Any:
    """Return the rows of a JSON object: the list that it contains, or the object itself as a single row.

    The list is the value of its only key or, next to metadata as in SQuAD, of a common key such as `data`.
    """
    lists = {name: value for name, value in wrapper.items() if _is_rows(value)}
    others = (value for name, value in wrapper.items() if name not in lists)
    known = len(lists) == 1 and lists.keys() <= _ROWS and not any(isinstance(value, list) for value in others)
    if lists and (len(wrapper) == 1 or known):
        return next(iter(lists.values()))
    if not wrapper or len(lists) == len(wrapper) or all(isinstance(value, dict) for value in wrapper.values()):
        raise DataError(
            f"{path}: must hold a list of objects or one object per line, got an object of "
            f"{cut(', '.join(wrapper)) or '{}'}; write the list under one of its keys to a separate file"
        )
    return [wrapper]


def _is_rows(value: Any) -> bool:
    """Return whether a value is a list of rows, as opposed to the messages of one row."""
    items = value if isinstance(value, list) else []
    return bool(items) and all(isinstance(item, dict) and not item.keys() & {"role", "from"} for item in items)


def _items(items: list[Any], path: Path) -> Rows:
    for number, item in enumerate(items, start=1):
        location = f"{path}: item {number}"
        yield location, _row(item, location)


def _row(item: Any, location: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{location}: must be an object, got {type(item).__name__}; write {{column: value, …}}")
    return item


def without_bom(text: bytes, path: Path) -> bytes:
    """Strip a UTF-8 byte order mark. Raises DataError for UTF-16."""
    if text.startswith(_UTF_16):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")
    return text.removeprefix(_BOM)
