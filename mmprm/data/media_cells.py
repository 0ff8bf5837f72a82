"""Read the videos and audio in a cell: paths, encoded bytes, and structs and lists of these."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmprm.data.cells import as_builtin, cut
from mmprm.data.image_cells import inside, listed, path_below
from mmprm.data.marks import AUDIO
from mmprm.errors import DataError
from mmprm.types import AudioRef, VideoRef

MediaKind = Literal["video", "audio"]


def read_videos(found: Sequence[tuple[str, Any]], frames: int, root: Path, location: str) -> tuple[VideoRef, ...]:
    """Convert the cells of a row's video columns to references; relative paths are below `root`."""
    return tuple(VideoRef(frames=frames, **place) for place in _places(found, "video", root, location))


def read_audios(found: Sequence[tuple[str, Any]], root: Path, location: str) -> tuple[AudioRef, ...]:
    """Convert the cells of a row's audio columns to references; relative paths are below `root`."""
    return tuple(AudioRef(**place) for place in _places(found, "audio", root, location))


def audio_tracks(videos: Sequence[VideoRef], texts: Sequence[str]) -> tuple[AudioRef, ...]:
    """Return the audio tracks of the videos if the texts have as many <audio> marks, as R1-Omni's do, else nothing."""
    marks = sum(text.lower().count(AUDIO) for text in texts)
    return tuple(AudioRef(each.path, each.data) for each in videos) if marks == len(videos) else ()


def _places(found: Sequence[tuple[str, Any]], kind: MediaKind, root: Path, location: str) -> list[dict[str, Any]]:
    if not found:
        return []
    name, value = found[0]
    if any(listed(other) != listed(value) for _, other in found[1:]):
        raise DataError(
            f"{location}: {name} and {found[1][0]} both hold {kind}, but different ones; set columns.{kind}s to one of "
            "them"
        )
    return [_place(item, kind, name, root, location) for item in listed(value)]


def _place(item: Any, kind: MediaKind, name: str, root: Path, location: str) -> dict[str, Any]:
    """Return {path} or {data} of a cell value. A file is not opened here, so a broken one later affects only its own
    problem."""
    value = as_builtin(item)
    value = inside(value) or value if isinstance(value, dict) else value
    if isinstance(value, bytes):
        return {"data": value}
    if isinstance(value, dict) and "array" in value:
        raise DataError(
            f"{location}: {name} holds decoded {kind}, but must hold a path or encoded bytes; write the column with "
            "datasets' decode=False"
        )
    if not isinstance(value, str) or re.match(r"\s*(?:https?|s3|gs|ftp|data):", value):
        raise DataError(f"{location}: {name} must hold paths or bytes, got {cut(value)!r}; save the {kind} as a file")
    path = path_below(value.strip(), root)
    if path is None:
        raise DataError(f"{location}: {name} must hold a path, got {cut(value)!r}; correct it")
    return {"path": os.fspath(path)}
