"""Embed images in an HTML page as data URLs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from mmprm.problems import open_image
from mmprm.types import ImageRef

if TYPE_CHECKING:
    from PIL import Image

IMAGE_PIXELS = 640
"""Maximum side length of an embedded image in pixels; larger images are scaled down."""

SMALL_PIXELS = 160
"""Side length in pixels below which an image is displayed without interpolation."""


def inlined(ref: ImageRef) -> tuple[str, bool]:
    """Return an image as a data URL, and whether both its sides are shorter than SMALL_PIXELS.

    Raises DataError if the image cannot be read.
    """
    return inlined_pixels(open_image(ref))


def inlined_pixels(image: Image.Image) -> tuple[str, bool]:
    """Return an image as a data URL, and whether both its sides are shorter than SMALL_PIXELS.

    Small images are PNG; of larger ones, the shorter of PNG and JPEG is used. The image itself is scaled down.
    """
    image.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS))
    small = max(image.size) < SMALL_PIXELS
    kinds = {"png": _encoded(image, format="PNG", optimize=True)}
    if not small:
        kinds["jpeg"] = _encoded(image, format="JPEG", quality=85)
    kind, data = min(kinds.items(), key=lambda item: len(item[1]))
    return data_url(f"image/{kind}", data), small


def data_url(kind: str, data: bytes) -> str:
    """Return the data URL of a file of the media type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(image: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **settings)
    return stream.getvalue()
