"""Return freed memory to the operating system after large requests."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable

_SECONDS = 1.0
_last = 0.0


def give_back() -> None:
    """Return freed memory to the operating system with malloc_trim, at most once per second.

    glibc retains freed memory in per-thread arenas: gigabytes after a batch of large images, which nothing else can
    use.
    """
    global _last
    now = time.monotonic()
    if now - _last >= _SECONDS:
        _trim()(0)
        _last = time.monotonic()


@functools.cache
def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return lambda _: 0
