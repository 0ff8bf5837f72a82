"""Draw and read tiny images: colored cells of 28 × 28 pixels with one digit each.

A cell is exactly one merged patch of Qwen2.5-VL (2 × 2 patches of 14 pixels), so each cell becomes one image token.
The image is lossless (PNG) and reading is the exact inverse of drawing, so the image contains the truth of a problem.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmprm.errors import DataError
from mmprm.types import ImageRef

CELL = 28
ROWS, COLUMNS = 2, 3
SHIFTS = tuple((down, right) for down in (-2, 0, 2) for right in (-2, 0, 2))
"""Possible offsets of a digit from the center of its cell, in pixels."""

COLORS = {
    "red": (230, 60, 60),
    "green": (70, 180, 80),
    "blue": (80, 120, 240),
    "yellow": (245, 225, 70),
    "purple": (165, 80, 200),
    "orange": (250, 150, 50),
    "cyan": (90, 215, 225),
    "white": (245, 245, 245),
}

DIGITS = {
    1: "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    2: ".###. #...# ....# ...#. ..#.. .#... #####",
    3: ".###. #...# ....# ..##. ....# #...# .###.",
    4: "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    5: "##### #.... ####. ....# ....# #...# .###.",
    6: ".###. #.... #.... ####. #...# #...# .###.",
    7: "##### ....# ...#. ..#.. ..#.. .#... .#...",
    8: ".###. #...# #...# .###. #...# #...# .###.",
    9: ".###. #...# #...# .#### ....# ....# .###.",
}
INK = (20, 20, 20)
SCALE = 3


def draw_cell(color: str, digit: int, shift: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a cell as an array, uint8 [28, 28, 3]."""
    cell = np.empty((CELL, CELL, 3), dtype=np.uint8)
    cell[:] = COLORS[color]
    rows = [[mark == "#" for mark in row] for row in DIGITS[digit].split()]
    # Each mark of the font becomes SCALE × SCALE pixels.
    glyph = np.kron(np.array(rows), np.ones((SCALE, SCALE))).astype(bool)
    height, width = glyph.shape
    top, left = (CELL - height) // 2 + shift[0], (CELL - width) // 2 + shift[1]
    cell[top : top + height, left : left + width][glyph] = INK
    return cell


def draw(cells: Sequence[tuple[str, int, tuple[int, int]]]) -> bytes:
    """Draw ROWS × COLUMNS cells (color, digit, shift), given row by row, and return the image as PNG bytes."""
    assert len(cells) == ROWS * COLUMNS
    pixels = [draw_cell(*cell) for cell in cells]
    rows = [np.concatenate(pixels[row * COLUMNS : (row + 1) * COLUMNS], axis=1) for row in range(ROWS)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, format="PNG")
    return buffer.getvalue()


def blank() -> ImageRef:
    """Return a plain gray image of the same size, as a control without information."""
    buffer = io.BytesIO()
    Image.new("RGB", (COLUMNS * CELL, ROWS * CELL), (128, 128, 128)).save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())


def read_cells(image: Image.Image, name: str) -> tuple[tuple[str, int, tuple[int, int]], ...]:
    """Read the cells from an image made by `draw`. Raises DataError, with `name`, for any other image."""
    pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (ROWS * CELL, COLUMNS * CELL, 3):
        size = f"{pixels.shape[1]}×{pixels.shape[0]}"
        raise DataError(
            f"{name}: image has {size} pixels and must have {COLUMNS * CELL}×{ROWS * CELL}; use images of the tiny "
            "world"
        )
    cells = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            patch = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            cell = _cell_of_pixels().get(patch.tobytes())
            if cell is None:
                raise DataError(
                    f"{name}: the cell in row {row + 1}, column {column + 1} is not a cell of the tiny world; use its "
                    "images unchanged"
                )
            cells.append(cell)
    return tuple(cells)


# Cells are looked up by their exact pixels, so an image that was changed in any way is rejected.
@functools.cache
def _cell_of_pixels() -> dict[bytes, tuple[str, int, tuple[int, int]]]:
    cells = [(color, digit, shift) for color in COLORS for digit in DIGITS for shift in SHIFTS]
    return {draw_cell(*cell).tobytes(): cell for cell in cells}
