"""Draw Sokoban states as images, in which each cell of 28 × 28 pixels becomes one image token."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image

from mmprm.tiny.image import CELL
from mmprm.tiny.sokoban import SIGNS, SokobanState, level_text
from mmprm.types import ImageRef

WALL = (70, 75, 90)
FLOOR = (240, 235, 225)
GOAL = (215, 70, 70)
BOX = (180, 120, 50)
BOX_ON_GOAL = (70, 160, 80)
PLAYER = (60, 100, 220)
SHADE = 12
"""Difference of the red value between rows, and of the blue value between columns."""


@functools.lru_cache(maxsize=4096)  # episodes of a level pass through the same states
def draw_state(state: SokobanState) -> ImageRef:
    """Draw the state and return the image as PNG bytes."""
    rows = [
        np.concatenate([draw_sign(sign, row, column) for column, sign in enumerate(line)], axis=1)
        for row, line in enumerate(level_text(state).split("\n"))
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())


@functools.cache
def draw_sign(sign: str, row: int, column: int) -> np.ndarray:
    """Return the pixels of a cell, uint8 [CELL, CELL, 3], given its sign in a level's text: a goal is a ring, a box a
    square, and the player a disc.

    The background is shaded by row and column. A small policy can thus see where a cell is, which its position ids in
    the image do not tell it.
    """
    content = SIGNS[sign].split()
    shade = SHADE * np.array((row, 0, column))
    pixels = np.empty((CELL, CELL, 3), dtype=np.uint8)
    pixels[:] = np.clip(np.add(WALL, shade) if "wall" in content else np.subtract(FLOOR, shade), 0, 255)
    center = (CELL - 1) / 2
    down, right = np.ogrid[:CELL, :CELL]
    radius = np.hypot(down - center, right - center)
    if "goal" in content:
        pixels[(radius > 9) & (radius < 13)] = GOAL
    if "box" in content:
        pixels[5:-5, 5:-5] = BOX_ON_GOAL if "goal" in content else BOX
    if "player" in content:
        pixels[radius < 8] = PLAYER
    return pixels
