"""Keep recently decoded images, because every turn of an episode shows the images of the turns before it again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmprm.types import ImageRef

if TYPE_CHECKING:
    from PIL import Image

_MAX_PIXELS = 2**24
"""Maximum number of pixels of all kept images together: 64 MiB, because Pillow stores four bytes per pixel."""


class RecentImages:
    """Decodes images and keeps the most recently used ones, up to `max_pixels` in total. It is thread-safe.

    Only images given as bytes are kept, because files may change. Callers share the kept images and must not modify
    them.
    """

    def __init__(self, decode: Callable[[ImageRef], Image.Image], max_pixels: int = _MAX_PIXELS) -> None:
        self._decode, self._max_pixels = decode, max_pixels
        self._kept: OrderedDict[ImageRef, Image.Image] = OrderedDict()
        self._pixels = 0
        self._lock = threading.Lock()

    def open(self, ref: ImageRef) -> Image.Image:
        """Return the decoded image. Raises what `decode` raises."""
        if ref.data is None:
            return self._decode(ref)
        with self._lock:
            if ref in self._kept:
                self._kept.move_to_end(ref)
                return self._kept[ref]
        image = self._decode(ref)
        pixels = image.width * image.height
        with self._lock:
            if ref not in self._kept and pixels <= self._max_pixels:
                self._kept[ref] = image
                self._pixels += pixels
            while self._pixels > self._max_pixels:
                _, oldest = self._kept.popitem(last=False)
                self._pixels -= oldest.width * oldest.height
        return image
