"""Render and tokenize prompts and load their images for the trainer, on the rank that needs them.

An encoded prompt is cached for all responses to it.

Shapes: P token of a prompt, X axis of the positions.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from mmprm.backbone.image_features import content_key
from mmprm.backbone.positions import Positions
from mmprm.backbone.processor import reads_images, tokenizer_of
from mmprm.errors import DataError
from mmprm.problems import open_image
from mmprm.prompts import PromptConfig
from mmprm.rendering import render
from mmprm.sampling.config import pixel_limits
from mmprm.types import ImageRef, Problem

KEPT_BYTES = 2**30
"""Capacity in bytes of the cache of encoded prompts, which serves the next pass over the same responses."""

_TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Represents an encoded prompt: token ids, positions, image inputs by name, and the number of image tokens."""

    ids_P: Tensor
    position_XP: Tensor
    images: dict[str, Tensor]
    image_tokens: int
    image_key: str = ""
    """Hash of the image inputs; empty without images."""

    @property
    def bytes(self) -> int:
        """Return the total size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in (self.ids_P, self.position_XP, *self.images.values()))


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
        self._positions = Positions(backbone.model)
        self.axes = self._positions.axes
        self.padding = tokenizer_of(processor).pad_token_id or 0
        self._kept: OrderedDict[Problem, EncodedPrompt] = OrderedDict()
        self._stand_in: dict[str, Tensor] | None = None

    def __call__(self, problem: Problem, expected_tokens: int) -> EncodedPrompt:
        """Return the encoded prompt of a problem, from the cache if possible.

        Raises DataError if the engine counted a different number of tokens, and for images that cannot be read.
        """
        if problem not in self._kept:
            self._kept[problem] = self._encode(problem)
            # Keep at least the new prompt, even if it alone exceeds the capacity.
            while sum(prompt.bytes for prompt in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        self._kept.move_to_end(problem)
        prompt = self._kept[problem]
        if len(prompt.ids_P) != expected_tokens:
            raise DataError(
                f"problem {problem.id}: its prompt is {len(prompt.ids_P)} tokens for the trainer, {expected_tokens} "
                "for the engine; give both the same model, prompt and image size"
            )
        return prompt

    @property
    def stand_in(self) -> dict[str, Tensor]:
        """Return the inputs of a minimal placeholder image, for batches without images."""
        if self._stand_in is None:
            from PIL import Image

            image_processor = self._processor.image_processor
            self._stand_in = dict(image_processor(images=[Image.new("RGB", (28, 28))], return_tensors="pt"))
            self._stand_in.pop("num_patches", None)
        return self._stand_in

    def _encode(self, problem: Problem) -> EncodedPrompt:
        if problem.images and not reads_images(self._processor):
            raise DataError(
                f"problem {problem.id}: has images, but the model reads text only; use a vision-language model, or "
                "remove the problem"
            )
        images = [self._open(problem, image) for image in problem.images]
        inputs = dict(
            self._processor(
                text=[render(self._processor, problem, "", self._prompt)],
                **({"images": images, **self._image_options} if images else {}),
                add_special_tokens=False,  # the chat template already contains them
                return_tensors="pt",
            )
        )
        text = {name: inputs.pop(name, None) for name in _TEXT_KEYS}
        ids_P, pixels = text["input_ids"][0], inputs if images else {}
        image_tokens = int((ids_P == self._image_id).sum()) if images else 0
        key = content_key(pixels) if pixels else ""
        return EncodedPrompt(ids_P, self._positions.of_sequence(ids_P, pixels), pixels, image_tokens, key)

    def _open(self, problem: Problem, image: ImageRef) -> Any:
        try:
            return open_image(image)
        except DataError as error:
            raise DataError(f"problem {problem.id}: {error}") from error
