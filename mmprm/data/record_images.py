"""Read the images of records with step labels, which `mmprm.problems` does not parse."""

from __future__ import annotations

from pathlib import Path

from mmprm.data.cells import Row
from mmprm.data.columns import Columns, cells_of, check_media, check_unread_images, rest_of, used_names
from mmprm.data.image_cells import read_image
from mmprm.data.question import column_images
from mmprm.types import ImageRef


def record_images(record: Row, question: str, root: Path, location: str) -> tuple[ImageRef, ...]:
    """Read a record's images from the same columns as in problem files.

    Relative paths are below `root`. Raises DataError, with `location`, for video, audio and unreadable cells.
    """
    check_media(record, None, location)
    found = cells_of(record, Columns(), "images", location)
    images = tuple(read_image(value, root, location) for value in column_images(found, root, location))
    if not images:
        check_unread_images(rest_of(record, used_names(record, found)), question, location)
    return images
