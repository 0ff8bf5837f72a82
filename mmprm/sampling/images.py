"""Encode images in chat messages for OpenAI-compatible servers."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

from mmprm.errors import DataError
from mmprm.problems import open_image
from mmprm.types import ImageRef

KEPT = 128
"""Maximum number of encoded images to cache for later requests about the same problem."""


async def with_images(messages: Sequence[dict[str, Any]], images: Sequence[ImageRef]) -> list[dict[str, Any]]:
    """Replace each {"type": "image"} part in the messages with the next image as a data URL.

    The messages are those of mmprm.prompts. Raises DataError if an image cannot be read, and for videos and audio.
    """
    urls = iter([await asyncio.to_thread(_data_url, image) for image in images])

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] in ("video", "audio"):
            raise DataError(
                f"has {part['type']}, which is not sent to servers; use engines of this run, or remove the problem"
            )
        return {"type": "image_url", "image_url": {"url": next(urls)}} if part["type"] == "image" else part

    return [
        turn if isinstance(turn["content"], str) else turn | {"content": [filled(part) for part in turn["content"]]}
        for turn in messages
    ]


@functools.lru_cache(maxsize=KEPT)
def _data_url(image: ImageRef) -> str:
    """Encode an image as a PNG data URL with the same pixels that a local engine sees.

    Servers would otherwise differ in how they handle transparency.
    """
    encoded = io.BytesIO()
    open_image(image).save(encoded, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
