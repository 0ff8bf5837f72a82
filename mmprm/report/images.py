"""Embed images in a page."""

from __future__ import annotations

import base64
import io

from mmprm.problems import open_image
from mmprm.types import ImageRef

IMAGE_PIXELS = 640
"""Maximum side length of an embedded image; larger ones are scaled down."""

SMALL_PIXELS = 160
"""Images with a longest side below this are shown without interpolation."""


def inlined(ref: ImageRef) -> tuple[str, bool]:
    """Return the image as a data URL and whether it is small; raise DataError if it cannot be read."""
    image = open_image(ref)
    image.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS))
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return url, max(image.size) < SMALL_PIXELS
