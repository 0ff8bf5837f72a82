"""Generate training texts for the tiny policy, and mark the parts that are targets of the loss.

- `solution`: the question and a solution in step tags. It has mistakes at fixed rates, which later steps propagate, as
  in the training corpora of real models. The most probable token is still the correct one, while sampling at
  temperature 1 errs at about those rates. The policy knows more than its samples show; labels and rewards reveal it.
- `readings`: the digits of all colors, one after the other.
- `drill`: calculations without an image.
- `checks`: unrelated statements about the image and about numbers, about half of them followed by Yes or No. A general
  model has seen true-or-false questions in its corpus. The process reward model still has to learn which statements a
  question needs, and that an error invalidates later steps.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import Qwen2_5_VLProcessor

from mmprm.tiny.image import COLORS, COLUMNS, DIGITS, ROWS, SHIFTS
from mmprm.tiny.tokenizer import END
from mmprm.tiny.world import OPERATORS, TAIL, Mistakes, TinyProblem, solve

_IMAGE = f"<|vision_start|>{'<|image_pad|>' * (ROWS * COLUMNS)}<|vision_end|>"
FACTS = {
    operator: [(a, operator, b, apply(a, b)) for a in range(100) for b in DIGITS if 0 <= apply(a, b) < 100]
    for operator, apply in OPERATORS.items()
}
"""Maps each operator to the calculations that may occur in solutions, as (left, operator, right, result) tuples."""
FIRST_FACTS = {operator: [fact for fact in facts if 0 < fact[0] < 10] for operator, facts in FACTS.items()}
"""Calculations that may come first in a solution. They are a small part of FACTS, but at least a third of those
generated."""
_MARKS = string.ascii_uppercase + "?|:;,.!~@#&*%$^_ "
"""Characters that may separate a statement from Yes or No, varied so that the model does not depend on a single
token."""

CHECK_HEADS = (
    "{image}\nProcess:\n",
    "{image}\nQuestion: {question}\nProcess: ",
    "<|im_start|>assistant\n{image}\nQuestion: {question}\nProcess: ",
)
"""Prompts that precede a statement to verify: the image alone, or the image and a question in the PRM's format."""

IGNORED = -100


class LessonPart(NamedTuple):
    """Holds a piece of a training text, and whether it is a target of the loss."""

    text: str
    target: bool


@dataclass(frozen=True, slots=True)
class Lesson:
    """Holds a training text as a sequence of parts. `cells` describes its image, or is None if it has no image."""

    cells: tuple[tuple[str, int, tuple[int, int]], ...] | None
    parts: tuple[LessonPart, ...]


def solution(tiny: TinyProblem, rng: random.Random, mistakes: Mistakes) -> Lesson:
    """Generate a question and its solution, with random mistakes."""
    response = "".join(solve(tiny, rng, mistakes))
    return Lesson(tiny.cells, (_ask(tiny.problem.question), LessonPart(response + END, True)))


def readings(tiny: TinyProblem, rng: random.Random) -> Lesson:
    """Generate a text that states the digit of each color, in random order."""
    digits = tiny.digits
    colors = rng.sample(sorted(digits), len(digits))
    response = "".join(f"<step>{color}={digits[color]}</step>" for color in colors)
    return Lesson(tiny.cells, (_ask(" ".join(colors) + TAIL), LessonPart(response + END, True)))


def drill(rng: random.Random, facts: int = 10) -> Lesson:
    """Generate random calculations without an image."""
    parts = []
    for left, operator, right, result in _facts(rng, facts):
        parts += [LessonPart(f"<step>{left}{operator}{right}=", False), LessonPart(f"{result}</step>", True)]
    return Lesson(None, (LessonPart("<|im_start|>assistant\n", False), *parts))


def checks(tiny: TinyProblem, rng: random.Random) -> Lesson:
    """Generate true and false statements about the image and about numbers, some followed by Yes or No."""
    statements = []
    for color, digit in tiny.digits.items():
        shown = rng.choice([digit, rng.choice([other for other in DIGITS if other != digit])])
        statements.append((f"{color}={shown}", shown == digit))
    for left, operator, right, result in _facts(rng, 8):
        # False results are off by one, two or ten, as are most mistakes in solutions.
        stated = rng.choice([result, abs(result + rng.choice((-10, -2, -1, -1, 1, 1, 2, 10)))])
        statements.append((f"{left}{operator}{right}={stated}", stated == result))
    rng.shuffle(statements)
    mark, between = rng.choice(_MARKS), rng.choice(("", "\n"))
    parts = [LessonPart(rng.choice(CHECK_HEADS).format(image=_IMAGE, question=tiny.problem.question), False)]
    for statement, true in statements:
        parts.append(LessonPart(statement + mark, False))
        # Half of the statements have no verdict, like the steps of a PRM's input that have no label.
        if rng.random() < 0.5:
            parts.append(LessonPart("Yes" if true else "No", True))
        parts.append(LessonPart(between, False))
    return Lesson(tiny.cells, tuple(parts))


def _ask(question: str) -> LessonPart:
    return LessonPart(f"<|im_start|>user\n{_IMAGE}{question}{END}\n<|im_start|>assistant\n", False)


def _facts(rng: random.Random, count: int) -> list[tuple[int, str, int, int]]:
    return [rng.choice(rng.choice((FACTS, FIRST_FACTS))[rng.choice(list(OPERATORS))]) for _ in range(count)]


class Collator:
    """Collates B lessons, padded to T tokens: input_ids, attention_mask, labels [B, T], position_ids [3, B, T].

    If a lesson has an image, image patches are added. A cell is exactly one merged patch, so they are looked up by the
    cells of the image, in order.
    """

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        from PIL import Image

        from mmprm.tiny.image import draw_cell

        self.tokenizer = processor.tokenizer
        self.image_token = processor.image_token_id
        cells = [(color, digit, shift) for color in COLORS for digit in DIGITS for shift in SHIFTS]
        images = [Image.fromarray(draw_cell(*cell)) for cell in cells]
        patches = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        self.patches = patches.reshape(len(cells), -1, patches.shape[-1])
        self.index = {cell: position for position, cell in enumerate(cells)}
        self.grid = torch.tensor(
            [1, 2 * ROWS, 2 * COLUMNS]
        )  # time, height and width in patches, with 2 × 2 patches per cell

    def pixels(self, images: Sequence[tuple]) -> dict[str, torch.Tensor]:
        """Look up the pixel patches of images, each of which is given as a tuple of cells."""
        indices = torch.tensor([self.index[cell] for cells in images for cell in cells])
        return {
            "pixel_values": self.patches[indices].flatten(0, 1),
            "image_grid_thw": self.grid.repeat(len(images), 1),
        }

    def __call__(self, lessons: Sequence[Lesson]) -> dict[str, torch.Tensor]:
        texts = [part.text for lesson in lessons for part in lesson.parts]
        token_lists = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        ids, labels = [], []
        for lesson in lessons:
            pairs = [(token, part.target) for part in lesson.parts for token in next(token_lists)]
            ids.append([token for token, _ in pairs])
            labels.append([token if target else IGNORED for token, target in pairs])
        longest = max(map(len, ids))
        input_ids_BT = torch.tensor([row + [self.tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
        labels_BT = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels])
        lengths_B = torch.tensor([len(row) for row in ids])
        batch = {
            "input_ids": input_ids_BT,
            "labels": labels_BT,
            "attention_mask": (torch.arange(longest) < lengths_B[:, None]).long(),
            "position_ids": self.positions(input_ids_BT),
        }
        images = [lesson.cells for lesson in lessons if lesson.cells is not None]
        return batch | (self.pixels(images) if images else {})

    def positions(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """Compute the M-RoPE position ids of a batch, [3, B, T].

        An image that starts at s has positions (s, s + row, s + column), and the text after it continues at
        s + max(ROWS, COLUMNS). The model's own implementation loops over samples in Python.
        """
        length = input_ids_BT.shape[1]
        positions = torch.arange(length)
        image_BT = input_ids_BT == self.image_token
        has_image_B = image_BT.any(dim=1)
        # A text without an image gets a start beyond its end, so every position comes before the image.
        start_B = torch.where(has_image_B, image_BT.int().argmax(dim=1), length)
        offset_BT = positions - start_B[:, None]
        cells, extent = ROWS * COLUMNS, max(ROWS, COLUMNS)
        text_BT = torch.where(offset_BT >= cells, positions - cells + extent, positions)
        rows_BT = start_B[:, None] + offset_BT.div(COLUMNS, rounding_mode="floor")
        columns_BT = start_B[:, None] + offset_BT.remainder(COLUMNS)
        starts_BT = start_B[:, None].expand_as(image_BT)
        return torch.stack([torch.where(image_BT, axis, text_BT) for axis in (starts_BT, rows_BT, columns_BT)])
