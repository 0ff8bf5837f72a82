"""Convert the observations of an episode to and from cells of a labels file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmprm.data.images import image_bytes
from mmprm.environments.interface import Observation
from mmprm.errors import DataError
from mmprm.types import ImageRef

Cells = list[list[dict[str, Any]]]
"""Parts of each observation, with either a `text` or the bytes of an `image`."""


def observation_cells(observations: Sequence[Observation] | None) -> Cells | None:
    """Return the parts of each observation as cells, with embedded images, or None if `observations` is None."""
    if observations is None:
        return None
    return [[_cell(part) for part in observation.parts] for observation in observations]


def read_observations(row: dict[str, Any], location: str) -> tuple[Observation, ...] | None:
    """Return the observations of a row, or None if its steps are not turns. Raises DataError unless there is one per
    step, and optionally one after them, and each part has a text or an image."""
    cells: Cells | None = row.get("observations")
    if cells is None:
        return None
    if len(cells) - len(row["steps"]) not in (0, 1):
        raise DataError(
            f"{location}: has {len(cells)} observations for {len(row['steps'])} steps; give one per step, and "
            "optionally one after the last step, or write the file with mmprm labels"
        )
    return tuple(Observation(tuple(_part(cell, location) for cell in parts or ())) for parts in cells)


def _cell(part: str | ImageRef) -> dict[str, Any]:
    return {"text": part, "image": None} if isinstance(part, str) else {"text": None, "image": image_bytes(part)}


def _part(cell: dict[str, Any] | None, location: str) -> str | ImageRef:
    text, image = (cell or {}).get("text"), (cell or {}).get("image")
    if (text is None) == (image is None):
        raise DataError(f"{location}: a part of an observation must have a text or an image; correct or remove the row")
    return ImageRef(data=image) if text is None else text
