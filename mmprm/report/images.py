"""Embed images in an HTML page as data URLs."""

from __future__ import annotations

import base64
import io

from mmprm.problems import open_image
from mmprm.types import ImageRef

IMAGE_PIXELS = 640
"""Maximum side length of an embedded image in pixels; larger images are scaled down."""

SMALL_PIXELS = 160
"""Side length in pixels below which an image is displayed without interpolation."""


def inlined(ref: ImageRef) -> tuple[str, bool]:
    """Return an image as a data URL, and whether both its sides are shorter than SMALL_PIXELS.

    Raises DataError if the image cannot be read.
    """
    image = open_image(ref)
    image.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS))
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return url, max(image.size) < SMALL_PIXELS
