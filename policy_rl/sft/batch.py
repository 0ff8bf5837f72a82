"""Tokenize conversations and collate them into micro-batches whose loss covers only the assistant's tokens.

The loss mask is not found by a search: each assistant turn is the text that the chat template appends to its prompt
(the preceding turns and the generation prompt), up to and including the token that ends the turn. The turn is tokenized
separately from its prompt, because the engine also generates it separately. Nothing is truncated.

Shapes: T token of a conversation, B row, L token of a row, X axis of the positions, N conversation of the batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from mmprm.backbone.image_features import ImageSet, content_key
from mmprm.backbone.masks import on_grid
from mmprm.backbone.omni import feature_order, stand_in_media, with_stand_ins
from mmprm.backbone.positions import Positions
from mmprm.backbone.processor import image_placeholder, reads_images, tokenizer_of
from mmprm.data.media_inputs import processor_arguments, reads_clips, why_unread
from mmprm.errors import CheckpointError, DataError
from mmprm.problems import image_size
from mmprm.prompts import PromptConfig
from mmprm.rendering import end_of_turn, opening, raw_placeholder, render_turns
from mmprm.sampling.config import pixel_limits
from mmprm.types import ImageRef, MediaRef, VideoRef
from policy_rl.sft.conversations import Conversation, Message
from policy_rl.trainer.policy import PolicyInputs

_TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")


class Piece(NamedTuple):
    """Represents a part of a rendered conversation that is either completely covered by the loss or not at all.

    `learned` pieces are covered by the loss; they have no media.
    """

    text: str
    learned: bool
    media: tuple[MediaRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """Represents a tokenized conversation: token ids, loss mask, position ids, and inputs of its media by name.

    `image_set` describes its images if the encoder has `describes_images` set.
    """

    ids_T: Tensor
    learned_T: Tensor
    position_XT: Tensor
    images: dict[str, Tensor]
    image_set: ImageSet | None = None


class Size(NamedTuple):
    """Counts the tokens of a conversation, including images, and the tokens that the loss covers."""

    tokens: int
    learned: int


class ConversationEncoder:
    """Encodes conversations as tensors.

    Images with more than `max_pixels` are scaled down, and images with fewer than `min_pixels` are scaled up. `ends`
    collects the ids of the tokens that ended the turns encoded so far. Set `describes_images` if the model caches image
    features.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        processor: Any,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
        prompt: PromptConfig | None = None,
    ) -> None:
        self._prompt = prompt or PromptConfig()
        self._opening = opening(processor, self._prompt)  # raises CheckpointError if there is no chat template
        self._end = end_of_turn(processor, self._prompt)
        self.processor, self.tokenizer = processor, tokenizer_of(processor)
        self.padding = self.tokenizer.pad_token_id or 0
        self.ends: set[int] = set()
        self.describes_images = False
        self._image_id = getattr(backbone.config, "image_token_id", None)
        self._image_options = pixel_limits(min_pixels, max_pixels)
        self._positions = Positions(backbone.model)
        self.axes = self._positions.axes
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._placeholder = ""
        if reads_images(processor):
            raw = self._prompt.template == "raw"
            self._placeholder = raw_placeholder(processor) if raw else image_placeholder(processor)
        self.media_ids = backbone.model.media_ids() if reads_clips(processor) else ()
        """Ids of the tokens that stand for images, videos and audio, if the model reads all of these."""
        self._extra: dict[tuple[int, int] | MediaRef, int] = {}

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """Render a conversation with the chat template, and separate the text that the loss covers from the other text.

        The pieces concatenate to the rendered text up to the end of the last turn. Raises DataError if the text
        contains a special token, or if the chat template renders a turn differently after its prompt.
        """
        self._check(conversation)
        shown, location = list(conversation.messages), conversation.location
        media = {"image": iter(conversation.images), "video": iter(conversation.videos)}
        media |= {"audio": iter(conversation.audios)}
        pieces: list[Piece] = []
        done, before = "", 0
        for number, message in enumerate(shown):
            if message["role"] != "assistant":
                continue
            prompt = self._text(shown[:number], True)
            whole = self._text(shown[: number + 1], False) if not self._opening else prompt + self._rest(message)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise DataError(
                    f"{location}: the chat template writes turn {number + 1} differently after its prompt, so its "
                    "tokens cannot be identified; give each turn its own row, or use a template that keeps turns "
                    "unchanged"
                )
            given = conversation.given if number == len(shown) - 1 else ""
            end = self._special.search(whole, len(prompt) + len(given))
            if end is None or not whole[len(prompt) :].startswith(given):
                raise CheckpointError(
                    f"{location}: the chat template does not end the assistant's turn with a special token, so the "
                    "policy would not learn to stop; set another chat_template"
                )
            self.ends.add(self.tokenizer.convert_tokens_to_ids(end[0]))
            kinds = [kind for earlier in shown[before:number] for kind in _kinds(earlier)]
            here = tuple(next(media[kind]) for kind in kinds)
            pieces.append(Piece(prompt[len(done) :] + given, False, here))
            pieces.append(Piece(whole[len(prompt) + len(given) : end.end()], True))
            done, before = whole[: end.end()], number
        self._check_questions(conversation, done)
        return pieces

    def size(self, conversation: Conversation) -> Size:
        """Count a conversation's tokens. An image is not decoded, because its tokens depend only on its size."""
        counts = [(self._ids(piece.text), piece) for piece in self.pieces(conversation)]
        extra = sum(map(self._extra_tokens, conversation.media))
        return Size(sum(len(ids) for ids, _ in counts) + extra, sum(len(ids) for ids, piece in counts if piece.learned))

    def __call__(self, conversation: Conversation) -> Encoded:
        """Tokenize a conversation and preprocess its media."""
        ids, learned = [], []
        images: dict[str, list[Tensor]] = {}
        for piece in self.pieces(conversation):
            if piece.media:
                inputs = self._with_media(piece.text, piece.media)
                ids.append(inputs["input_ids"][0])
                for name, tensor in _pixels(inputs).items():
                    images.setdefault(name, []).append(tensor)
            else:
                ids.append(torch.tensor(self._ids(piece.text)))
            learned.append(torch.full((len(ids[-1]),), piece.learned))
        ids_T = torch.cat(ids)
        joined = {name: torch.cat(tensors) for name, tensors in images.items()}
        position_XT = self._positions.of_sequence(ids_T, joined)
        return Encoded(ids_T, torch.cat(learned), position_XT, joined, self._image_set(ids_T, joined))

    def _image_set(self, ids_T: Tensor, images: dict[str, Tensor]) -> ImageSet | None:
        if not images or not self.describes_images:
            return None
        rows = {name: len(tensor) for name, tensor in images.items()}
        return ImageSet(content_key(images), int((ids_T == self._image_id).sum()), rows)

    @property
    def stand_in(self) -> dict[str, Tensor]:
        """Return the model inputs for a minimal placeholder image, for batches without images."""
        if self.media_ids:
            return stand_in_media(self.processor)
        return _pixels(self._processed(self._placeholder, {"images": [Image.new("RGB", (28, 28))]}))

    def _check(self, conversation: Conversation) -> None:
        if reason := why_unread(self.processor, conversation.media):
            raise DataError(f"{conversation.location}: {reason}")
        for number, message in enumerate(conversation.messages, start=1):
            content = message["content"]
            texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            for match in filter(None, map(self._special.search, texts)):
                raise DataError(
                    f"{conversation.location}: turn {number} contains {match[0]!r}, a reserved token; remove it"
                )

    def _rest(self, message: Message) -> str:
        """Return an assistant turn's text and end token, without an opening (such as <think>) in the prompt."""
        return message["content"].removeprefix(self._opening) + self._end

    def _check_questions(self, conversation: Conversation, text: str) -> None:
        """Raise CheckpointError if the chat template omits the text of a user turn."""
        for message in conversation.messages:
            content = message["content"]
            parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            lost = next((part for part in parts if message["role"] == "user" and part.strip() not in text), None)
            if lost is not None:
                raise CheckpointError(
                    f"{conversation.location}: the chat template omits {lost.strip()[:60]!r} from the prompt; set "
                    "prompt.template=raw, or another chat_template"
                )

    def _text(self, turns: Sequence[Message], prompt: bool) -> str:
        return render_turns(self.processor, turns, self._prompt, prompt)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _with_media(self, text: str, media: Sequence[MediaRef]) -> dict[str, Tensor]:
        return self._processed(text, processor_arguments(self.processor, media, self._image_options))

    def _processed(self, text: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
        return dict(self.processor(text=[text], add_special_tokens=False, return_tensors="pt", **arguments))

    def _extra_tokens(self, ref: MediaRef) -> int:
        # The number of an image's tokens depends only on its size, so a blank image gives the same count.
        is_image = isinstance(ref, ImageRef)
        key = image_size(ref) if is_image else ref
        if key not in self._extra:
            if is_image:
                text = self._placeholder
                inputs = self._processed(text, {"images": [Image.new("RGB", key)], **self._image_options})
            else:
                text = self.processor.video_token if isinstance(ref, VideoRef) else self.processor.audio_token
                inputs = self._with_media(text, [ref])
            self._extra[key] = inputs["input_ids"].shape[1] - len(self._ids(text))
        return self._extra[key]


def _pixels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name not in _TEXT_KEYS}


def _kinds(message: Message) -> list[str]:
    """Return the kinds of a message's media, in order."""
    if isinstance(message["content"], str):
        return []
    return [part["type"] for part in message["content"] if part["type"] != "text"]


def collate_conversations(
    rows: Sequence[Sequence[Encoded]], encoder: ConversationEncoder, stand_in: bool = False
) -> PolicyInputs:
    """Collate rows of conversations into the tensors of a micro-batch.

    Each row holds one conversation, or several that do not attend to each other. With `stand_in`, a micro-batch without
    images gets a minimal placeholder image, so that the vision tower runs.
    """
    width = max(sum(len(each.ids_T) for each in row) for row in rows)
    shares_rows = any(len(row) > 1 for row in rows)
    if shares_rows:
        width = on_grid(width)
    ids_BL = torch.full((len(rows), width), encoder.padding)
    position_XBL = torch.zeros((encoder.axes, len(rows), width), dtype=torch.long)
    end_BL = torch.arange(width).repeat(len(rows), 1)
    present_BL = torch.zeros((len(rows), width), dtype=torch.bool)
    reads, tokens = [], []
    for b, row in enumerate(rows):
        start = 0
        for each in row:
            here = slice(start, start + len(each.ids_T))
            ids_BL[b, here], position_XBL[:, b, here] = each.ids_T, each.position_XT
            end_BL[b, here], present_BL[b, here] = here.stop - 1, True
            index_N = each.learned_T.nonzero()[:, 0]
            # A target token is predicted at the position before it.
            reads.append(b * width + start + index_N - 1)
            tokens.append(each.ids_T[index_N])
            start = here.stop
    shown = [each.images for row in rows for each in row if each.images]
    names = dict.fromkeys(name for one in shown for name in one)
    images = {name: torch.cat([one[name] for one in shown if name in one]) for name in names}
    if stand_in and encoder.media_ids and shown:
        images = with_stand_ins(images, encoder.stand_in)
    return PolicyInputs(
        input_ids_BL=ids_BL,
        position_ids=position_XBL if encoder.axes > 1 else position_XBL[0],
        end_BL=end_BL if shares_rows else None,
        present_BL=present_BL,
        read_NT=pad_sequence(reads, batch_first=True),
        token_NT=pad_sequence(tokens, batch_first=True),
        response_NT=pad_sequence([torch.ones(len(token_T), dtype=torch.bool) for token_T in tokens], batch_first=True),
        images=images if shown or not stand_in else encoder.stand_in,
        feature_F=feature_order(ids_BL, encoder.media_ids) if shown and encoder.media_ids else None,
        shows_images=bool(shown),
        image_sets=tuple(each.image_set for row in rows for each in row if each.image_set is not None),
    )
