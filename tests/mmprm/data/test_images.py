"""Test images: accepted cell types, conversion to upright 8-bit RGB, and files that are not opened."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmprm.data import images
from mmprm.data.image_cells import listed, looks_like_image, read_image
from mmprm.data.images import image_size, open_image
from mmprm.data.media import unreadable_media
from mmprm.errors import DataError
from mmprm.problems import write_image
from mmprm.types import ImageRef

RED, BLUE = (255, 0, 0), (0, 0, 255)
TEXT = "row 1"


def two_colors(width: int = 40, height: int = 20) -> Image.Image:
    """Return an image that is red on the left and blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


PNG = encoded(two_colors())
B64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        bytearray(PNG),
        B64.encode(),
        B64,
        "\n".join(B64[start : start + 76] for start in range(0, len(B64), 76)),
        B64.translate(str.maketrans("+/", "-_")).rstrip("="),
        f"data:image/png;base64,{B64}",
        {"bytes": PNG, "path": "x.png"},
        {"bytes": B64, "path": None},
        {"bytes": None, "path": "a.png"},
        {"url": f"data:image/png;base64,{B64}"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        "a.png",
        " a.png ",
        "with space.png",
        "no-suffix",
    ],
)
def test_accepted_cell_types(tmp_path: Path, value: Any) -> None:
    for name in ("a.png", "with space.png", "no-suffix"):
        (tmp_path / name).write_bytes(PNG)
    image = open_image(read_image(value, tmp_path, TEXT))
    assert (image.size, image.getpixel((5, 5)), image.getpixel((35, 5))) == ((40, 20), RED, BLUE)


def test_file_urls_and_percent_signs(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    assert read_image(f"file://{tmp_path}/a%20b.png", Path("/"), TEXT).path == str(tmp_path / "a b.png")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://x.org/a.png", r"row 1: .* got 'https://x.org/a.png' in image; download it first"),
        ("s3://bucket/a.png", "download it first"),
        ("no file", "is neither an existing file nor such base64"),
        ("A" * 5000, r"got 'A{59}…' in image"),
        (base64.b64encode(b"plain words, no image at all").decode(), "nor such base64"),
        (B64[:16], "nor such base64"),
        (f"data:image/png;base64,{B64[:-3]}!", "data URL is not base64"),
        ("data:image/svg+xml,<svg/>", "data URL is not base64"),
        (7, "must be a path or bytes, got '7'"),
        ("a\0b.png", "neither an existing file"),
        ({"src": "a.png"}, r"must be a path or bytes, got \"{'src': 'a.png'}\""),
    ],
)
def test_an_invalid_image_names_its_line(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_image(value, tmp_path, TEXT, "image")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (None, 0),
        ("", 0),
        ([None, "", "a.png"], 1),
        ([["a.png"], ["b.png", None]], 2),
        ('["a.png", "b.png"]', 2),
        ("['a.png']", 1),
        ({"bytes": None, "path": None}, 0),
        ({"bytes": None, "path": None, "id": 3}, 0),
        ({"src": "a.png"}, 1),
        ([{"bytes": None, "path": ""}, {"bytes": b"x", "path": None}], 1),
        (float("nan"), 0),
        (np.array(["a.png", "b.png"], dtype=object), 2),
    ],
)
def test_empty_cells_and_lists(value: Any, count: int) -> None:
    assert len(listed(value)) == count


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photographs_are_upright(form: str, orientation: int) -> None:
    """Pillow's own transposition is the reference, pixel by pixel."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(two_colors(), form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = open_image(ImageRef(data=data))
    assert found.tobytes() == expected.tobytes()
    assert image_size(ImageRef(data=data)) == found.size == ((20, 40) if orientation >= 5 else (40, 20))


RAMP = np.linspace(0, 255, 16, dtype=np.uint8).reshape(4, 4)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (RAMP, "PNG"),
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(np.int32), "TIFF"),
        (RAMP.astype(np.int32) * 257, "TIFF"),
        (RAMP.astype(np.float32) / 255, "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
    ],
)
def test_deep_gray_values_are_scaled(values: Any, form: str) -> None:
    image = open_image(ImageRef(data=encoded(Image.fromarray(values), form)))
    assert image.mode == "RGB"
    assert np.asarray(image)[..., 0].tolist() == RAMP.tolist()


@pytest.mark.parametrize("values", [[[-1.0, 1.0]], [[0.0, 300.0]], [[0.0, float("nan")]]])
def test_gray_values_without_a_range_are_refused(tmp_path: Path, values: list[list[float]]) -> None:
    Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"\.tiff: gray values .* must lie in 0…1 or 0…255; save it with 8 bits"):
        open_image(ImageRef(path=str(tmp_path / "x.tiff")))


@pytest.mark.parametrize("mode", ["P", "L", "1", "LA", "RGBA", "CMYK", "YCbCr", "PA"])
def test_modes_become_rgb(mode: str) -> None:
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG" if mode != "PA" else "TIFF"
    image = Image.new("RGB", (8, 8), "white").convert("P" if mode == "PA" else mode)
    found = open_image(ImageRef(data=encoded(image, form)))
    assert (found.mode, found.getpixel((3, 3))) == ("RGB", (255, 255, 255))


def test_several_frames_are_refused() -> None:
    frames = [two_colors(), Image.new("RGB", (40, 20), "white")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match="has 2 frames and must have 1; save the intended frame"):
            open_image(ImageRef(data=data))
        assert open_image(ImageRef(data=encoded(frames[0], form))).size == (40, 20)


def test_only_regular_files_of_bounded_size_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("/dev/zero", str(tmp_path / "pipe.png")):
        with pytest.raises(DataError, match="is not a regular file and cannot be read as an image"):
            open_image(ImageRef(path=path))
        assert len(images.image_digest(ImageRef(path=path))) == 64
    (tmp_path / "a.png").write_bytes(PNG)
    monkeypatch.setattr(images, "MAX_BYTES", len(PNG) - 1)
    with pytest.raises(DataError, match=r"a\.png: \d+ bytes, at most"):
        image_size(ImageRef(path=str(tmp_path / "a.png")))


def test_only_images_are_copied(tmp_path: Path) -> None:
    (tmp_path / "key.png").write_text("PRIVATE KEY")
    with pytest.raises(DataError, match="cannot be read as an image"):
        write_image(ImageRef(path=str(tmp_path / "key.png")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    jpeg = encoded(two_colors(), "JPEG")
    assert write_image(ImageRef(data=jpeg), tmp_path / "out").endswith(".jpg")


def test_every_image_is_decoded_to_find_the_broken_ones(tmp_path: Path) -> None:
    """In a truncated file, the header alone looks intact."""
    jpeg = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    torn = ImageRef(data=jpeg[: len(jpeg) // 2])
    assert image_size(torn) == (64, 64)
    good, gone = ImageRef(data=PNG), ImageRef(path=str(tmp_path / "gone.png"))
    found = unreadable_media([("a", [good]), ("b", [good, torn]), ("c", []), ("d", [gone])])
    assert list(found) == ["b", "d"]
    assert "gone.png: cannot be read as an image" in found["d"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("figures/a.JPG", True),
        (B64, True),
        ("iVBORw0KGgo=", True),
        (["a.png"], True),
        ({"bytes": None, "path": "a.png"}, True),
        (PNG, True),
        (f"data:image/png;base64,{B64}", True),
        ("https://x.org/a.webp", True),
        ("Look at the file a.png", False),
        ("What is png?", False),
        (b"words", False),
        (3, False),
        ({"level": "a.png"}, False),
        (None, False),
    ],
)
def test_detecting_image_values(value: Any, expected: bool) -> None:
    assert looks_like_image(value) is expected
