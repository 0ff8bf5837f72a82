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


@functools.lru_cache(maxsize=4096)  # episodes of a level pass through the same states
def draw_state(state: SokobanState) -> ImageRef:
    """Draw the state and return the image as PNG bytes."""
    rows = [np.concatenate([draw_sign(sign) for sign in line], axis=1) for line in level_text(state).split("\n")]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())


@functools.cache
def draw_sign(sign: str) -> np.ndarray:
    """Return the pixels of a cell, uint8 [CELL, CELL, 3], given its sign in a level's text: a goal is a ring, a box a
    square, and the player a disc."""
    content = SIGNS[sign].split()
    pixels = np.empty((CELL, CELL, 3), dtype=np.uint8)
    pixels[:] = WALL if "wall" in content else FLOOR
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
