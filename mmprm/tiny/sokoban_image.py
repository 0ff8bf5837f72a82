"""Draw Sokoban states as images, in which each cell of 28 × 28 pixels becomes one image token."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image

from mmprm.tiny.image import CELL
from mmprm.tiny.sokoban import Cell, SokobanState
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
    rows = [
        np.concatenate([_cell(*_kinds(state, (row, column))) for column in range(state.layout.width)], axis=1)
        for row in range(state.layout.height)
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())


def _kinds(state: SokobanState, cell: Cell) -> tuple[bool, bool, bool, bool]:
    return cell in state.layout.walls, cell in state.layout.goals, cell in state.boxes, cell == state.player


@functools.cache
def _cell(wall: bool, goal: bool, box: bool, player: bool) -> np.ndarray:
    """Return the pixels of a cell, uint8 [CELL, CELL, 3]: a goal is a ring, a box a square, and the player a disc."""
    pixels = np.empty((CELL, CELL, 3), dtype=np.uint8)
    pixels[:] = WALL if wall else FLOOR
    center = (CELL - 1) / 2
    down, right = np.ogrid[:CELL, :CELL]
    radius = np.hypot(down - center, right - center)
    if goal:
        pixels[(radius > 9) & (radius < 13)] = GOAL
    if box:
        pixels[5:-5, 5:-5] = BOX_ON_GOAL if goal else BOX
    if player:
        pixels[radius < 8] = PLAYER
    return pixels
