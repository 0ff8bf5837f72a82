"""Look up, test and parse the cells of table rows, including nested fields."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

from mmprm.errors import DataError

Row = Mapping[str, Any]

MAX_DEPTH = 100
"""Maximum nesting depth of lists and structs in a row."""

_NESTED = (list, tuple, dict)
_ABSENT = object()
_NUMPY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^()\[\]]+)?\)", re.DOTALL)
_ADJACENT = re.compile(r"[\"']\s+[\"']")


def as_builtin(value: Any) -> Any:
    """Convert a value to built-in Python types.

    Values with `tolist` (NumPy, PyArrow) and buffers are converted; NaN becomes None.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def is_empty(value: Any) -> bool:
    """Return whether a cell is empty: null, NaN, blank text, or lists and structs that hold only empty values."""
    value = as_builtin(value)
    if value is None:
        return True
    if isinstance(value, str | bytes):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_empty, value))
    return False


def find(row: Row, name: str) -> Any:
    """Return the value of a row's column, or raise KeyError if the row has no such column.

    A dotted name that is not itself a column refers to a member of a struct.
    """
    if name in row:
        return as_builtin(row[name])
    value = _reach(row, name) if "." in name else _ABSENT
    if value is _ABSENT:
        raise KeyError(name)
    return value


def _reach(value: Any, name: str) -> Any:
    """Return the value at a dotted path, or _ABSENT if the path does not exist.

    A part of the name may contain dots or be a 0-based list index. Lists and structs may also be stored as text.
    """
    value = as_builtin(_struct(value))
    if isinstance(value, list | tuple):
        number, _, rest = name.partition(".")
        if not number.isascii() or not number.isdigit() or int(number) >= len(value):
            return _ABSENT
        return _reach(value[int(number)], rest) if rest else as_builtin(value[int(number)])
    if not isinstance(value, Mapping):
        return _ABSENT
    if name in value:
        return as_builtin(value[name])
    # A key may contain dots itself, so every dot of the name is tried as the end of the first key.
    for position in (index for index, letter in enumerate(name) if letter == "."):
        first, rest = name[:position], name[position + 1 :]
        found = _reach(value[first], rest) if first in value else _ABSENT
        if found is not _ABSENT:
            return found
    return _ABSENT


def _struct(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        return parsed(value)
    return value


def top_of(row: Row, name: str) -> str:
    """Return the top-level column that a possibly dotted name refers to."""
    return name if name in row else name.partition(".")[0]


def flat(value: Any) -> list[Any]:
    """Return a cell's non-empty values as a flat list. The cell contains one value or a list, possibly written as
    text."""
    value = as_builtin(value)
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = parsed(value)
    if isinstance(value, list | tuple):
        return [inner for item in value for inner in flat(item)]
    return [] if is_empty(value) else [value]


def parsed(text: str) -> Any:
    """Parse a list or struct written as JSON, Python or NumPy text; return other texts unchanged."""
    for read in (json.loads, _literal):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
            continue
        if isinstance(value, list | tuple | dict) and not is_too_deep(value):
            return value
    return text


def is_too_deep(value: Any) -> bool:
    """Return whether lists and structs are nested deeper than MAX_DEPTH, where recursive functions could fail."""
    level = [value]
    for _ in range(MAX_DEPTH):
        groups = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, _NESTED))
        level = [inner for group in groups for inner in group]
    return any(isinstance(item, _NESTED) for item in level)


def _literal(text: str) -> Any:
    """Evaluate a Python literal, first inserting the commas that NumPy omits between strings.

    Without them, Python would concatenate adjacent strings into one.
    """
    array = _NUMPY.fullmatch(text)
    text = array[1] if array else text
    if _ADJACENT.search(text):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.ENDMARKER)
        found = [token for token in tokens if token.type not in kinds]
        text = "".join(
            token.string + ("," if [token.type, after] == [tokenize.STRING] * 2 else " ")
            for token, after in zip(found, [*(token.type for token in found[1:]), None], strict=True)
        )
    return ast.literal_eval(text)


def cut(value: Any, length: int = 60) -> str:
    """Format a value for an error message, truncated to `length` characters."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list | tuple):  # avoids formatting all of a long list
        value = value[:length]
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def names_of(row: Row | Sequence[str]) -> str:
    """Format the column names of a row for an error message."""
    return cut(", ".join(map(str, row)), 300)


def check_characters(texts: Mapping[str, str], location: str) -> None:
    """Raise DataError if a field contains a lone surrogate, which may come from an escape in a list stored as JSON
    text.

    Other JSON is checked when it is read.
    """
    for field, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{location}: {field} holds half of a surrogate pair, which is not valid text; remove it"
            ) from None
