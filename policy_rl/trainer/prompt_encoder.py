"""Render and tokenize prompts and load their images for the trainer, on the rank that needs them.

An encoded prompt is cached for all responses to it.

Shapes: P token of a prompt, T token after it, L token of both, X axis of the positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmprm.backbone.image_features import ImageSet, content_key
from mmprm.backbone.omni import stand_in_media
from mmprm.backbone.positions import Positions
from mmprm.backbone.processor import tokenizer_of
from mmprm.data.media_inputs import processor_arguments, reads_clips, why_unread
from mmprm.errors import DataError
from mmprm.prompts import PromptConfig
from mmprm.rendering import render
from mmprm.sampling.config import pixel_limits
from mmprm.types import MediaRef, Problem
from policy_rl.types import TokenRow, TrainingSample

KEPT_BYTES = 2**30
"""Capacity in bytes of the cache of encoded prompts, which serves the next pass over the same responses."""

_TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Represents an encoded prompt: token ids, positions, image inputs by name, and the image sets that they form."""

    ids_P: Tensor
    position_XP: Tensor
    images: dict[str, Tensor]
    image_sets: tuple[ImageSet, ...] = ()
    position_XT: Tensor | None = None
    """Positions of the tokens after the prompt, for an episode, whose observations may show images. None if they
    continue from the prompt's highest position."""

    @property
    def image_tokens(self) -> int:
        """Return the number of image tokens."""
        return sum(each.features for each in self.image_sets)

    @property
    def bytes(self) -> int:
        """Return the total size of the tensors in bytes."""
        positions = (self.position_XP,) if self.position_XT is None else (self.position_XP, self.position_XT)
        return sum(tensor.nbytes for tensor in (self.ids_P, *positions, *self.images.values()))


class PromptEncoder:
    """Encodes problems' prompts as tensors, with an LRU cache of KEPT_BYTES.

    Images with more than `max_pixels` are scaled down and those with fewer than `min_pixels` up, as in the engine.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        processor: Any,
        prompt: PromptConfig,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
    ) -> None:
        self._processor, self._prompt = processor, prompt
        self._image_options = pixel_limits(min_pixels, max_pixels)
        self._image_id = getattr(backbone.config, "image_token_id", None)
        self.reads_clips = reads_clips(processor)
        self.media_ids: tuple[int, ...] = backbone.model.media_ids() if self.reads_clips else (self._image_id or -1,)
        """Ids of the tokens that stand for images, videos and audio, in the order of their features."""
        self._positions = Positions(backbone.model)
        self.axes = self._positions.axes
        self.padding = tokenizer_of(processor).pad_token_id or 0
        self._kept: OrderedDict[Hashable, EncodedPrompt] = OrderedDict()
        self._bytes = 0
        self._stand_in: dict[str, Tensor] | None = None

    def __call__(self, problem: Problem, expected_tokens: int) -> EncodedPrompt:
        """Return the encoded prompt of a problem, from the cache if possible.

        Raises DataError if the engine counted a different number of tokens, and for images that cannot be read.
        """
        prompt = self._cached(problem, lambda: self._encode(problem))
        if len(prompt.ids_P) != expected_tokens:
            raise DataError(
                f"problem {problem.id}: its prompt is {len(prompt.ids_P)} tokens for the trainer, {expected_tokens} "
                "for the engine; give both the same model, prompt and image size"
            )
        return prompt

    def row(self, sample: TrainingSample) -> EncodedPrompt:
        """Return the encoded row of an episode, whose token ids are those of the engine.

        Raises DataError if the engine's images have a different number of tokens, or cannot be read.
        """
        (row,), problem = sample.rows, sample.problem
        if row.images and self.reads_clips:
            raise DataError(
                f"problem {problem.id}: episodes with images cannot be trained on with a model that reads clips; use a "
                "vision-language model"
            )
        shown = [self._cached(image, lambda image=image: self._encode_image(problem, image)) for image in row.images]
        pixels = {name: torch.cat([each.images[name] for each in shown]) for name in (shown[0].images if shown else ())}
        key = (row.prompt_ids.tobytes(), sample.token_ids.tobytes(), row.images)
        encoded = self._cached(key, lambda: self._encode_row(problem, row, sample.token_ids, shown, pixels))
        return replace(encoded, images=pixels)  # the cache has the pixels of each image once

    def _cached(self, key: Hashable, encode: Callable[[], EncodedPrompt]) -> EncodedPrompt:
        if key not in self._kept:
            self._kept[key] = encode()
            self._bytes += self._kept[key].bytes
            # Keep at least the new prompt, even if it alone exceeds the capacity.
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].bytes
        self._kept.move_to_end(key)
        return self._kept[key]

    def _encode_row(
        self,
        problem: Problem,
        row: TokenRow,
        token_ids: np.ndarray,
        shown: Sequence[EncodedPrompt],
        pixels: dict[str, Tensor],
    ) -> EncodedPrompt:
        """Encode the row of an episode, without its pixels."""
        ids_L = torch.from_numpy(np.concatenate([row.prompt_ids, token_ids]).astype(np.int64))
        sets = tuple(each for image in shown for each in image.image_sets)
        here, there = sum(each.features for each in sets), int((ids_L == self._image_id).sum())
        if here != there:
            raise DataError(
                f"problem {problem.id}: the images of an episode are {here} tokens for the trainer, {there} for the "
                "engine; give both the same model and image size"
            )
        position_XL, head = self._positions.of_sequence(ids_L, pixels), len(row.prompt_ids)
        return EncodedPrompt(ids_L[:head], position_XL[:, :head], {}, sets, position_XL[:, head:])

    def _encode_image(self, problem: Problem, image: MediaRef) -> EncodedPrompt:
        """Encode a single image, which is cached because episodes often show the same image."""
        self._check_reads(problem, (image,))
        ids_P, pixels, sets = self._read(problem, self._processor.image_token, (image,))
        return EncodedPrompt(ids_P, torch.empty(self.axes, 0), pixels, sets)

    @property
    def stand_in(self) -> dict[str, Tensor]:
        """Return the inputs of a minimal placeholder image, for batches without images."""
        if self._stand_in is None and self.reads_clips:
            self._stand_in = stand_in_media(self._processor)
        if self._stand_in is None:
            from PIL import Image

            image_processor = self._processor.image_processor
            self._stand_in = dict(image_processor(images=[Image.new("RGB", (28, 28))], return_tensors="pt"))
            self._stand_in.pop("num_patches", None)
        return self._stand_in

    def _encode(self, problem: Problem) -> EncodedPrompt:
        self._check_reads(problem, problem.media)
        text = render(self._processor, problem, "", self._prompt)
        ids_P, pixels, sets = self._read(problem, text, problem.media)
        return EncodedPrompt(ids_P, self._positions.of_sequence(ids_P, pixels), pixels, sets)

    def _read(
        self, problem: Problem, text: str, media: Sequence[MediaRef]
    ) -> tuple[Tensor, dict[str, Tensor], tuple[ImageSet, ...]]:
        """Return the token ids of a text, the inputs of its media by name, and the set that all of them form."""
        inputs = self._inputs(problem, text, media)
        ids_P = inputs["input_ids"][0]
        if not media:
            return ids_P, {}, ()
        pixels = {name: tensor for name, tensor in inputs.items() if name not in _TEXT_KEYS}
        tokens = int(torch.isin(ids_P, torch.tensor(self.media_ids)).sum())
        rows = {name: len(tensor) for name, tensor in pixels.items()}
        return ids_P, pixels, (ImageSet(content_key(pixels), tokens, rows),)

    def _check_reads(self, problem: Problem, media: Sequence[MediaRef]) -> None:
        if reason := why_unread(self._processor, media):
            raise DataError(f"problem {problem.id}: {reason}")

    def _inputs(self, problem: Problem, text: str, media: Sequence[MediaRef]) -> dict[str, Tensor]:
        """Return the processor's inputs for a text and its media."""
        try:
            opened = processor_arguments(self._processor, media, self._image_options)
        except DataError as error:
            raise DataError(f"problem {problem.id}: {error}") from error
        return dict(
            self._processor(
                text=[text],
                **opened,
                add_special_tokens=False,  # the chat template already contains them
                return_tensors="pt",
            )
        )
