"""Read image sizes from headers, decode images to RGB, and copy image files.

Only regular files of bounded size and still images of bounded dimensions are opened.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mmprm.data.cells import cut
from mmprm.data.streams import open_stream
from mmprm.errors import DataError
from mmprm.files import write_new
from mmprm.types import ImageRef

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Maximum number of pixels per image. A small compressed file could otherwise unpack to gigabytes. No problem needs
more, and a small file can unpack to gigabytes."""
MAX_ASPECT = 200
"""Maximum ratio of the longer side to the shorter one; Qwen-VL's processors reject more."""
MAX_BYTES = 256 * 2**20
"""Maximum size of an image file in bytes; even uncompressed RGB with MAX_PIXELS pixels is smaller."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tiff",
    b"MM\0*": ".tiff",
}
_ADDRESS = re.compile(r" ?<[\w.]+ object at 0x[0-9a-fA-F]+>")
"""Matches the address of the stream object in Pillow's error messages, which differs between runs."""
_ORIENTATION = 0x0112  # EXIF tag


def open_image(ref: ImageRef) -> Image.Image:
    """Return the upright image as 8-bit RGB (EXIF orientation applied, transparency composited over white).

    Raises DataError, naming the path, if the image cannot be read, exceeds MAX_PIXELS, MAX_ASPECT or MAX_BYTES, or has
    several frames.
    """
    with _opened(ref, MAX_PIXELS) as image:
        orientation = _orientation(image)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _eight_bits(image, _name(ref))
        elif image.has_transparency_data:
            from PIL import Image

            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return _upright(image.convert("RGB"), orientation)


def image_size(ref: ImageRef, at_most: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the upright (width, height) of an image from its header, without decoding the pixels.

    Raises DataError in the same cases as open_image, except for damaged pixel data.
    """
    with _opened(ref, at_most) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def image_pixels(ref: ImageRef, at_most: int = MAX_PIXELS) -> int:
    """Return the number of pixels of an image; see image_size."""
    width, height = image_size(ref, at_most)
    return width * height


@contextmanager
def _opened(ref: ImageRef, max_pixels: int) -> Iterator[Image.Image]:
    from PIL import Image

    name = _name(ref)
    try:
        with (
            open_stream(ref, MAX_BYTES, "an image") as stream,
            Image.open(_FewReads(stream, name), formats=_FORMATS) as image,
        ):
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"{name}: {image.width}×{image.height} pixels, but at most {max_pixels:,} are allowed; scale it "
                    "down"
                )
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise DataError(
                    f"{name}: {image.width}×{image.height} pixels, but one side may be at most {MAX_ASPECT} times the "
                    "other; crop it"
                )
            if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:  # MPO: previews of one photo
                raise DataError(
                    f"{name}: has {frames} frames and must have 1; save the intended frame as a still image"
                )
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions for damaged files.
        why = cut(_ADDRESS.sub("", str(error)), 200)
        raise DataError(
            f"{name}: cannot be read as an image ({type(error).__name__}: {why}); save it again as PNG or JPEG"
        ) from error


def _name(ref: ImageRef) -> str:
    return ref.path or f"image of {len(ref.data or b'')} bytes"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8; 1 is upright) from the metadata before the pixel data."""
    from PIL import Image

    if image.format == "TIFF":  # Pillow applies the orientation of TIFF itself.
        return 1
    try:
        # Call the base class's method: PNG's override would decode the image to look for EXIF data after the pixels.
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # A damaged EXIF block carries no orientation, but the pixels may be intact.
        return 1
    return found if found in range(1, 9) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale gray values to 8 bits, where white is 65,535 (16-bit), 255 or 65,535 (32-bit integers), or 1 or 255
    (floats)."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float32)
    ranges = {"F": (1, 255), "I": (255, 65_535)}.get(image.mode, (65_535,))
    low, high = float(values.min()), float(values.max())
    white = next((limit for limit in ranges if high <= limit), None)
    if white is None or not low >= 0:
        raise DataError(
            f"{name}: gray values from {low:g} to {high:g} (mode {image.mode}) must lie in "
            f"0…{' or 0…'.join(map(str, ranges))}; save it with 8 bits per channel"
        )
    # The transparent gray value becomes white, as transparency does in every other mode.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = white
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def suffix_of(data: bytes) -> str:
    """Detect an image's format from its signature, and return its file suffix, or "" if the format is unsupported."""
    return next((suffix for start, suffix in _SIGNATURES.items() if data.startswith(start)), "")


def image_bytes(ref: ImageRef) -> bytes:
    """Return the encoded bytes of an image. Raises OSError or DataError if its file cannot be read."""
    if ref.data is not None:
        return ref.data
    with open_stream(ref, MAX_BYTES, "an image") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:  # files of virtual file systems report a size of zero
        raise DataError(f"{ref.path}: is larger than {MAX_BYTES // 2**20} MiB; scale it down")
    return data


def content_digest(ref: ImageRef) -> str | None:
    """Return the SHA-256 of the encoded image, or None if the file cannot be read."""
    try:
        return hashlib.sha256(image_bytes(ref)).hexdigest()
    except (OSError, ValueError, DataError):
        return None


def image_digest(ref: ImageRef) -> str:
    """Return the SHA-256 of the encoded image, or of its path if the file cannot be read."""
    return content_digest(ref) or hashlib.sha256((ref.path or "").encode()).hexdigest()


def write_image(ref: ImageRef, folder: Path) -> str:
    """Copy an image into the subfolder `images/` of `folder`, named by a content hash, and return its path relative to
    `folder`.

    Raises DataError for anything that is not an image, so a row cannot cause an arbitrary file to be copied.
    """
    image_size(ref)
    data = image_bytes(ref)
    suffix = Path(ref.path).suffix if ref.path else suffix_of(data) or ".png"
    target = folder / "images" / f"{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
    if not target.exists():
        write_new(target, data)
    return str(target.relative_to(folder))


class _FewReads:
    """Wraps an image's stream, and raises DataError after more reads than an ordinary image of its size needs.

    A file made of a million tiny chunks, frames or segments would otherwise keep the reader busy for seconds.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        # Ordinary files need one read per few kilobytes; this allows one per 100 bytes, plus 20,000 for small files.
        self._left = 20_000 + stream.seek(0, os.SEEK_END) // 100
        stream.seek(0)

    def read(self, *size: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise DataError(f"{self._name}: has too many parts for an image of its size; save it again")
        return self._stream.read(*size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
