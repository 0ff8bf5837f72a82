"""Pack several token trees into each input row, where every token attends only to its ancestors.

A token's position is its depth in the tree. A tree holds the solutions of one problem, or a single solution or
episode. Its images are encoded once.

Shapes: B row, T token of a row, X axis of positions (3 with M-RoPE, else 1), D depth.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmprm.backbone.masks import on_grid
from mmprm.backbone.positions import Positions
from mmprm.backbone.processor import image_placeholder, reads_images, tokenizer_of
from mmprm.backbone.token_tree import Ints, TokenTree, cut_at_subtrees, token_tree
from mmprm.data.media_inputs import MEDIA_KINDS, opened_arguments, processor_arguments, reads_clips
from mmprm.errors import DataError
from mmprm.prm.formats import Format, Marked
from mmprm.problems import open_image
from mmprm.types import ImageRef, MediaRef, Solution


@dataclass(frozen=True, slots=True)
class PackedTree:
    """Holds the token tree of one problem's solutions. `members` are their indices in the list of all solutions."""

    members: tuple[int, ...]
    images: tuple[ImageRef, ...]
    tokens: TokenTree
    deepest: Ints
    """Token indices of the longest solution, whose position ids are used for every token at the same depth."""
    reads: tuple[Ints, ...]
    """For each solution in the tree, the indices of the tree's tokens at which its steps are scored."""


class ImageInputs(NamedTuple):
    """Holds the image tensors of a batch, and the number of image tokens of each image."""

    tensors: dict[str, Tensor]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """Holds the model inputs for packed rows, and the indices of the scores to read."""

    inputs: dict[str, Tensor]
    """Model inputs: input_ids_BT, position_ids_BT (or position_ids_XBT) and image tensors."""
    end_BT: Tensor
    """Index of the last token in each token's subtree. A padding token attends only to itself."""
    read_BT: Tensor
    """Mask of the tokens at which scores are read. A token shared by several solutions is read once."""
    reads: list[tuple[Ints, ...]]
    """For each solution of each tree, the indices of its step scores among all scores that the model returns."""
    images: ImageInputs
    """The image tensors among the inputs."""


class Marks:
    """Tokenizes solutions without processing pixels, and locates the tokens at which steps are scored.

    Image placeholders are expanded as in Format.encode, because the number of image tokens depends only on the image
    size. Each image is opened once, so broken images are found before a run begins.
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self._texts = placeholders_of(form.processor)
        encode = tokenizer_of(form.processor).encode
        self._placeholders = {kind: encode(text, add_special_tokens=False) for kind, text in self._texts.items()}
        self._of_size: dict[tuple[int, int], list[int]] = {}
        self._of_medium: dict[MediaRef, list[int]] = {}

    def __call__(self, solution: Solution) -> tuple[Ints, Ints]:
        return self._grown(solution, self._form.mark(solution))

    def many(self, solutions: Sequence[Solution]) -> list[tuple[Ints, Ints]]:
        found = list(map(self._grown, solutions, self._form.mark_many(solutions)))
        self._of_medium.clear()  # a scorer is long-lived, and a key may hold a file's bytes
        return found

    def _grown(self, solution: Solution, marked: Marked) -> tuple[Ints, Ints]:
        ids, rest = [], list(marked.ids)
        for medium in solution.media:
            placeholder = self._placeholders[MEDIA_KINDS[type(medium)]]
            position = _find(placeholder, rest)
            ids += rest[:position] + self._medium(medium)
            rest = rest[position + len(placeholder) :]
        ids += rest
        return np.asarray(ids, dtype=np.int32), np.asarray(self._form.located(marked, ids))

    def _medium(self, medium: MediaRef) -> list[int]:
        if medium not in self._of_medium:
            if isinstance(medium, ImageRef):
                self._of_medium[medium] = self._sized(open_image(medium).size)
            else:
                arguments = processor_arguments(self._form.processor, [medium], self._form.pixel_limits)
                self._of_medium[medium] = self._expanded(MEDIA_KINDS[type(medium)], arguments)
        return self._of_medium[medium]

    def _sized(self, size: tuple[int, int]) -> list[int]:
        if size not in self._of_size:
            # A blank image of this size expands to the same number of tokens and is faster to process.
            blank = {"image": [Image.new("RGB", size)]}
            arguments = opened_arguments(self._form.processor, blank, self._form.pixel_limits)
            self._of_size[size] = self._expanded("image", arguments)
        return self._of_size[size]

    def _expanded(self, kind: str, arguments: dict[str, Any]) -> list[int]:
        inputs = self._form.processor(text=[self._texts[kind]], add_special_tokens=False, **arguments)
        return list(inputs["input_ids"][0])


def pack_solutions(
    solutions: Sequence[Solution],
    marked: Sequence[tuple[Ints, Ints]],
    max_tokens: int,
    shared: bool = True,
) -> list[PackedTree]:
    """Pack solutions into trees of at most `max_tokens` tokens. A longer solution gets its own tree.

    `marked[i]` holds the tokens of solution i and the positions of its scores; tokens after the last score are dropped.
    With `shared=False`, each solution gets its own tree. So does each episode: a token's position follows from its
    depth, but the images of different branches shift it differently.
    """
    paths = [ids[: positions[-1] + 1] for ids, positions in marked]
    groups: dict[Hashable, list[int]] = {}
    for number, solution in enumerate(solutions):
        problem = solution.problem  # grouped by content, because the id may be a line number
        together = shared and not solution.observations
        groups.setdefault((problem.question, problem.media) if together else number, []).append(number)
    trees = []
    for group in groups.values():
        for part in cut_at_subtrees([paths[number] for number in group], max_tokens):
            members = tuple(sorted(group[number] for number in part))
            tree = token_tree([paths[member] for member in members])
            reads = (indices[marked[member][1]] for member, indices in zip(members, tree.indices_PL, strict=True))
            deepest = max(tree.indices_PL, key=len)
            trees.append(PackedTree(members, solutions[members[0]].images, tree, deepest, tuple(reads)))
    return trees


class TreeInputs:
    """Builds right-padded model inputs from rows of trees. `model` is used only to compute position ids."""

    def __init__(self, form: Format, model: nn.Module) -> None:
        self._pad = tokenizer_of(form.processor).pad_token_id or 0
        self._pixels, self._positions = Pixels(form), Positions(model)

    def __call__(self, rows: Sequence[Sequence[PackedTree]]) -> PackedInputs:
        width = on_grid(max(sum(len(tree.tokens) for tree in row) for row in rows))
        images = self._pixels([image for row in rows for tree in row for image in tree.images])
        pixels = images.tensors
        grids = {name: iter(tensor) for name, tensor in pixels.items() if name.endswith("grid_thw")}
        ids_BT = np.full((len(rows), width), self._pad, dtype=np.int64)
        end_BT = np.tile(np.arange(width), (len(rows), 1))
        read_BT = np.zeros((len(rows), width), dtype=bool)
        position_XBT = np.zeros((self._positions.axes, len(rows), width), dtype=np.int64)
        reads, found = [], 0
        for b, row in enumerate(rows):
            start = 0
            for tree in row:
                tokens, here = tree.tokens, slice(start, start + len(tree.tokens))
                own = {name: [next(grid) for _ in tree.images] for name, grid in grids.items()}
                position_XD = self._positions(tokens.ids_T[tree.deepest], own if tree.images else {})
                ids_BT[b, here] = tokens.ids_T
                end_BT[b, here] = tokens.end_T + start
                position_XBT[:, b, here] = position_XD[:, tokens.depth_T]
                read_T = np.zeros(len(tokens), dtype=bool)
                read_T[np.concatenate(tree.reads)] = True
                # The model returns the scores of all rows in token order, so the cumulative sum is their index.
                order_T = np.cumsum(read_T) - 1 + found
                reads.append(tuple(order_T[positions] for positions in tree.reads))
                read_BT[b, here] = read_T
                found, start = found + int(read_T.sum()), here.stop
        position_ids = torch.from_numpy(position_XBT if self._positions.axes > 1 else position_XBT[0])
        inputs = {"input_ids": torch.from_numpy(ids_BT), "position_ids": position_ids, **pixels}
        return PackedInputs(inputs, torch.from_numpy(end_BT), torch.from_numpy(read_BT), reads, images)


def placeholders_of(processor: Any) -> dict[str, str]:
    """Return the text that the chat template writes for one medium of each kind that the processor reads."""
    kinds = ["image"] if reads_images(processor) else []
    kinds += ["video", "audio"] if reads_clips(processor) else []
    return {kind: image_placeholder(processor, kind) for kind in kinds}


class Pixels:
    """Runs the processor on images, videos and audio, and returns their tensors, without the text."""

    def __init__(self, form: Format) -> None:
        self._processor, self._pixel_limits = form.processor, form.pixel_limits
        self._texts = placeholders_of(form.processor)

    def __call__(self, refs: Sequence[MediaRef]) -> ImageInputs:
        if not refs:
            return ImageInputs({}, [])
        text = [self._texts[MEDIA_KINDS[type(ref)]] for ref in refs]
        arguments = processor_arguments(self._processor, refs, self._pixel_limits)
        inputs = self._processor(text=text, padding=True, return_tensors="pt", **arguments)
        tokens = []
        if not reads_clips(self._processor):  # otherwise, features are not cached
            tokens = (inputs["input_ids"] == self._processor.image_token_id).sum(dim=1).tolist()
        return ImageInputs({name: tensor for name, tensor in inputs.items() if name not in _OF_TEXT}, tokens)


_OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")


def _find(part: list[int], whole: list[int]) -> int:
    for position in range(len(whole) - len(part) + 1):
        if whole[position : position + len(part)] == part:
            return position
    raise DataError(
        "the tokens of an image placeholder change within a text; use the tokenizer released with the model"
    )
