"""Convert the answer in a row to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmprm.data.cells import cut, is_empty, parsed
from mmprm.errors import DataError


def answer_text(value: Any, found: Sequence[tuple[str, Any]], location: str) -> str:
    """Convert a string, a number or a list of these to text.

    Raises DataError for other values, such as structs and infinity.
    """
    if value is None:
        return ""
    if isinstance(value, str) and value.lstrip().startswith("["):
        texts = parsed(value)  # [1, 2] is a point or an interval; ['A', 'B'] is a list that a table stores as text
        value = texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else value
    items = [item for item in (value if isinstance(value, list | tuple) else [value]) if not is_empty(item)]
    items = [parsed(item) if isinstance(item, str) and item.lstrip().startswith("{") else item for item in items]
    for item in items:
        if isinstance(item, Mapping | list | tuple | bytes) or item in (float("inf"), float("-inf")):
            name = found[0][0]
            inside = f"name the part that holds the answer (columns.answer={name}.…)"
            raise DataError(
                f"{location}: {name} must be a text or a number, got {cut(item)!r}; "
                + (inside if isinstance(item, Mapping) else "correct it, or remove the row")
            )
    return "\n".join(map(str, items))
