"""Open the files of images, videos and audio recordings for reading, if they are regular files of bounded size."""

from __future__ import annotations

import io
import os
import stat
from typing import BinaryIO

from mmprm.errors import DataError
from mmprm.types import MediaRef


def open_stream(ref: MediaRef, max_bytes: int, kind: str) -> BinaryIO:
    """Open the file or the bytes of a medium for reading. `kind` names it in errors, for example "an image".

    Raises OSError, and DataError if it is not a regular file or exceeds `max_bytes`.
    """
    if ref.data is not None:
        return io.BytesIO(ref.data)
    path = ref.path or ""
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes:
        return stream
    stream.close()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is not a regular file and cannot be read as {kind}; give another file")
    raise DataError(
        f"{path}: {status.st_size:,} bytes, at most {max_bytes:,}; too large to be read as {kind}; compress it"
    )


def _without_waiting(path: str, flags: int) -> int:
    """Open a file in non-blocking mode, so that a pipe without a writer cannot block the reader."""
    return os.open(path, flags | os.O_NONBLOCK)
