"""Cells of rows: columns by name (also inside of structs), and what counts as an empty cell."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

MAX_DEPTH = 100
"""Levels of lists and structs in a row."""

_NESTED = (list, tuple, dict)
_ABSENT = object()
_NUMPY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^()\[\]]+)?\)", re.DOTALL)
_ADJACENT = re.compile(r"[\"']\s+[\"']")


def plain(value: Any) -> Any:
    """Return a value as Python's own types: what has `tolist` (NumPy, PyArrow) or is a buffer is converted; NaN is
    None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def is_empty(value: Any) -> bool:
    """Return whether a cell holds nothing: null, NaN, blank text, or lists and structs of nothing but these."""
    value = plain(value)
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
    """Return the value of a column; a dotted name that is no column reaches into structs. KeyError for no such one."""
    if name in row:
        return plain(row[name])
    value = _reach(row, name) if "." in name else _ABSENT
    if value is _ABSENT:
        raise KeyError(name)
    return value


def _reach(value: Any, name: str) -> Any:
    """Any part of the name may itself hold dots, or be a number (from 0) in a list; both may be written as text."""
    value = plain(_struct(value))
    if isinstance(value, list | tuple):
        number, _, rest = name.partition(".")
        if not number.isascii() or not number.isdigit() or int(number) >= len(value):
            return _ABSENT
        return _reach(value[int(number)], rest) if rest else plain(value[int(number)])
    if not isinstance(value, Mapping):
        return _ABSENT
    if name in value:
        return plain(value[name])
    places = [place for place, letter in enumerate(name) if letter == "."]
    found = (_reach(value[name[:place]], name[place + 1 :]) for place in places if name[:place] in value)
    return next((value for value in found if value is not _ABSENT), _ABSENT)


def _struct(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        return parsed(value)
    return value


def top_of(row: Row, name: str) -> str:
    """Return the column in which a (dotted) name begins."""
    return name if name in row else name.partition(".")[0]


def flat(value: Any) -> list[Any]:
    """Return the items of a cell: of a list (also nested, also the text of one) or the value itself; no empty ones."""
    value = plain(value)
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = parsed(value)
    if isinstance(value, list | tuple):
        return [inner for item in value for inner in flat(item)]
    return [] if is_empty(value) else [value]


def parsed(text: str) -> Any:
    """Return the list or struct that a text writes in JSON, Python or NumPy; the text itself where it writes none."""
    for read in (json.loads, _literal):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
            continue
        if isinstance(value, list | tuple | dict) and not is_too_deep(value):
            return value
    return text


def is_too_deep(value: Any) -> bool:
    """Return whether lists and structs are nested deeper than MAX_DEPTH, where recursion over them would fail."""
    level = [value]
    for _ in range(MAX_DEPTH):
        groups = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, _NESTED))
        level = [inner for group in groups for inner in group]
    return any(isinstance(item, _NESTED) for item in level)


def _literal(text: str) -> Any:
    """Read as Python, except that NumPy writes lists without commas, which to Python is one text."""
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
    """Return at most so many characters of a value, for an error message."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list | tuple):  # without writing out all of a long one
        value = value[:length]
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def names_of(row: Row | Sequence[str]) -> str:
    """Return the columns of a row, for an error message."""
    return cut(", ".join(map(str, row)), 300)
