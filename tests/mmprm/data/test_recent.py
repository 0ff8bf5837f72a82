"""Test which decoded images are kept."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from mmprm.data.images import open_image
from mmprm.data.recent import RecentImages
from mmprm.errors import DataError
from mmprm.types import ImageRef


def encoded(shade: int, width: int = 10) -> ImageRef:
    stream = io.BytesIO()
    Image.new("RGB", (width, 10), (shade, shade, shade)).save(stream, "PNG")
    return ImageRef(data=stream.getvalue())


def counting(decoded: list[ImageRef], max_pixels: int) -> RecentImages:
    return RecentImages(lambda ref: decoded.append(ref) or open_image(ref), max_pixels)


def test_the_least_recently_used_images_are_dropped() -> None:
    decoded: list[ImageRef] = []
    recent = counting(decoded, max_pixels=200)
    first, second, third = encoded(1), encoded(2), encoded(3)
    for ref in (first, second, first, third, first, second):
        assert recent.open(ref).getpixel((0, 0))[0] == open_image(ref).getpixel((0, 0))[0]
    assert decoded == [first, second, third, second]


def test_an_image_above_the_limit_is_not_kept() -> None:
    decoded: list[ImageRef] = []
    recent = counting(decoded, max_pixels=200)
    small, large = encoded(1), encoded(2, width=21)
    for ref in (large, small, small, large):
        assert recent.open(ref).width == open_image(ref).width
    assert decoded == [large, small, large]


def test_files_and_unreadable_images_are_decoded_every_time(tmp_path: Path) -> None:
    decoded: list[ImageRef] = []
    recent = counting(decoded, max_pixels=200)
    path = tmp_path / "a.png"
    for shade in (1, 2):
        path.write_bytes(encoded(shade).data or b"")
        assert recent.open(ImageRef(str(path))).getpixel((0, 0)) == (shade,) * 3
        with pytest.raises(DataError, match="cannot be read as an image"):
            recent.open(ImageRef(data=b"no image"))
    assert len(decoded) == 4
