"""Read the images in a cell: paths, encoded bytes, base64, data URLs, and structs and lists of these."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmprm.data.cells import as_builtin, cut, flat, is_empty
from mmprm.data.images import image_size, suffix_of
from mmprm.errors import DataError
from mmprm.types import ImageRef

_IMAGE_PATH = re.compile(
    r"\S{1,1000}\.(?:png|jpe?g|jfif|webp|gif|bmp|tiff?|avif|heic|heif|svg)(?:\?\S*)?", re.IGNORECASE
)
_PATH = re.compile(r"[^\n\0]{1,1000}\.\w{1,5}")
_KEYS = ("bytes", "data", "base64", "path", "url", "image", "image_url", "file_name")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def listed(value: Any) -> list[Any]:
    """List the images in a cell without reading them. The cell holds one image or a list (also as text)."""
    return [item for item in flat(value) if not (isinstance(item, dict) and _names_nothing(item))]


def read_image(value: Any, root: Path, location: str, field: str = "") -> ImageRef:
    """Convert a path (relative to `root`), encoded bytes, a data URL, base64 text, or a struct of these to an ImageRef.

    Structs are {bytes, path} or {url}. A path is not opened here, so a broken file later affects only its own problem.
    Raises DataError for anything else.
    """
    value = as_builtin(value)
    within = f" in {field}" if field else ""
    value = inside(value) or value if isinstance(value, dict) else value
    if isinstance(value, bytes):
        return ImageRef(data=value if suffix_of(value) or not (decoded := _base64(value)) else decoded)
    if not isinstance(value, str) or re.match(r"\s*(?:https?|s3|gs|ftp)://", value):
        raise DataError(f"{location}: an image must be a path or bytes, got {cut(value)!r}{within}; download it first")
    if value.startswith("data:"):
        return ImageRef(data=_data_url(value, location))
    path = path_below(value.strip(), root)
    if path is not None and path.exists():
        return ImageRef(path=str(path))
    if (data := _base64(value.encode(errors="replace"))) and _has_header(data):
        return ImageRef(data=data)
    if path is None or not _PATH.fullmatch(value):
        raise DataError(
            f"{location}: an image must be a path or base64 of a PNG, JPEG, WebP, GIF, BMP or TIFF, got "
            f"{cut(value)!r}{within}, which is neither an existing file nor such base64; correct it, or set "
            "problems.image_root"
        )
    return ImageRef(path=str(path))


def _has_header(data: bytes) -> bool:
    try:
        image_size(ImageRef(data=data))
    except DataError:
        return False
    return True


def check_types(image_cells: Sequence[tuple[str, Any]], location: str) -> None:
    for name, value in image_cells:
        bad = [item for item in listed(value) if not isinstance(item, str | bytes | dict)]
        if bad:
            raise DataError(
                f"{location}: {name} must be a path, bytes or a list of these, got {cut(bad[0])!r}; correct it, or set "
                "columns.images"
            )


def looks_like_image(value: Any) -> bool:
    """Return whether a value looks like an image: a path with an image suffix, encoded bytes, base64, or a data URL."""
    value = as_builtin(value)
    if isinstance(value, list | tuple):
        return any(map(looks_like_image, value[:8]))
    if isinstance(value, dict):
        return value.keys() & {"bytes", "path", "url"} != set() and looks_like_image(inside(value))
    if isinstance(value, bytes):
        return bool(suffix_of(value))
    if not isinstance(value, str):
        return False
    return bool(
        value.startswith("data:image/")
        or _IMAGE_PATH.fullmatch(value.strip())
        or _base64(value.encode(errors="replace"))
    )


def _names_nothing(value: Mapping[str, Any]) -> bool:
    """Return whether a struct has image keys but all of them are empty. A struct with other keys must not be
    skipped."""
    return inside(value) is None and not value.keys().isdisjoint(_KEYS)


def inside(value: Mapping[str, Any]) -> Any:
    """Return the value inside {bytes, path}, {url}, {image_url: {url}} and similar structs, or None if it is
    empty."""
    found = next((as_builtin(value[name]) for name in _KEYS if not is_empty(value.get(name))), None)
    return inside(found) if isinstance(found, dict) else found


def path_below(value: str, root: Path) -> Path | None:
    """Resolve a path relative to `root`, or return None if the text cannot be a file name."""
    try:
        path = root / value.removeprefix("file://")
        if value.startswith("file://") and "%" in value and not path.exists():
            path = root / unquote(value.removeprefix("file://"))
        path.exists()
        return path
    except (OSError, ValueError):  # the name is too long or contains a null byte
        return None


def _data_url(value: str, location: str) -> bytes:
    head, _, text = value.partition(",")
    if not head.endswith(";base64"):
        raise DataError(
            f"{location}: the image's data URL is not base64 ({cut(head)!r}); write data:image/png;base64,…"
        )
    try:
        return base64.b64decode("".join(unquote(text).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"{location}: the image's data URL is not base64 ({error}); correct it, or remove the row"
        ) from error


def _base64(text: bytes) -> bytes | None:
    """Decode base64 text to bytes that begin with an image signature, or return None for any other text.

    Line breaks, the URL-safe alphabet and missing padding are accepted.
    """
    head = text[:64].translate(_URL_SAFE, b" \t\r\n")[:16]
    if len(head) < 8 or not suffix_of(_decoded(head)):
        return None
    return _decoded(text.translate(_URL_SAFE, b" \t\r\n")) or None


def _decoded(text: bytes) -> bytes:
    text = text.rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""
