"""Tokenize solutions for each PRM family, and locate the tokens at which step scores are read.

    mm-prm         after an empty user turn: `Question: {q}\\nProcess: {s1}<prm>{s2}<prm>`           at <prm>
    math-shepherd  `{q} Step 1: {s1} ки\\nStep 2: {s2} ки`                                           at ки
    qwen           system prompt; user `{q}`; assistant `{s1}<extra_0>{s2}<extra_0>`                 at <extra_0>
    rlhflow        user `{q} {s1}`; assistant `+`; user `{s2}`; assistant `+`                        before each +
    visualprm      system prompt; user `### Question:…### Solution Process:…{s1}`; assistant `+`; …  before each +
    skywork        bos, `{q}\\n`, then each step and `\\n`, tokenized separately                    at each of these
    trl            bos if there is one, `{q}`, then each step and `\\n`, tokenized separately         at each of these

mm-prm, math-shepherd, rlhflow and visualprm score steps with the logits of two tokens. qwen and trl use a two-class
head (incorrect, correct), and skywork a single-output head followed by a sigmoid. Each family is tokenized as in its
published code.

Shapes: B solution, T token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from mmprm.backbone.processor import (
    image_placeholder,
    reads_images,
    templated,
    token_id,
    tokenizer_of,
    vision_tokens,
)
from mmprm.data.choices import asked_question
from mmprm.data.marks import IMAGE
from mmprm.errors import CheckpointError, DataError
from mmprm.labels.formats import VISUALPRM_SYSTEM, numbered
from mmprm.prm.info import FORMAT, PrmInfo, PrmTokens
from mmprm.prm.mm_prm_format import NO_LIMITS, Renderer, check_solution, special_tokens
from mmprm.problems import open_image
from mmprm.types import Problem, Solution, Steps

Head = Literal["two_tokens", "two_classes", "value"]
ChatTurns = list[dict[str, str]]

MARK = "\ue000"
"""Private-use character that represents the marker in a text, so that the markers can be located."""


@dataclass(frozen=True, slots=True)
class Marked:
    """Holds a solution's token ids, with one placeholder per image, and the index of the token at which each step is
    scored."""

    ids: Sequence[int]
    positions: Sequence[int]


class Format(ABC):
    """Renders solutions for one PRM family. `yes_id` and `no_id` are None if the family has a scoring head."""

    yes_id: int | None = None
    no_id: int | None = None
    pixel_limits: Mapping[str, int] = NO_LIMITS
    """Limits of the number of pixels per image or video frame; only mm-prm has them."""

    def __init__(self, head: Head, processor: Any, tokens: PrmTokens) -> None:
        self.head, self.processor, self.tokens = head, processor, tokens
        self.tokenizer = tokenizer_of(processor)

    @abstractmethod
    def mark(self, solution: Solution) -> Marked:
        """Tokenize a solution and locate the tokens at which its steps are scored; raise DataError if the family cannot
        express it."""

    def mark_many(self, solutions: Sequence[Solution]) -> list[Marked]:
        """Tokenize several solutions; see `mark`."""
        return [self.mark(solution) for solution in solutions]

    def encode(self, solutions: Sequence[Solution]) -> tuple[Any, Tensor]:
        """Return right-padded model inputs, and the mask read_BT of the tokens at which steps are scored."""
        marked = [self.mark(solution) for solution in solutions]
        inputs = self._inputs(solutions, marked)
        input_ids_BT = inputs["input_ids"]
        read_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
        for row, (item, length) in enumerate(zip(marked, inputs["attention_mask"].sum(dim=1).tolist(), strict=True)):
            read_BT[row, self.located(item, input_ids_BT[row, :length].tolist())] = True
        return inputs, read_BT

    def located(self, marked: Marked, ids: Sequence[int]) -> list[int]:
        """Return the indices of the scores among `ids`, the solution's token ids with expanded image placeholders.

        Images come before the first step, so an index keeps its distance from the end.
        """
        positions = [len(ids) - len(marked.ids) + position for position in marked.positions]
        assert [ids[position] for position in positions] == [marked.ids[position] for position in marked.positions], (
            "same tokens"
        )
        return positions

    def length(self, solution: Solution) -> int:
        """Count the tokens of a solution, including those of its images."""
        return self._inputs([solution], [self.mark(solution)])["input_ids"].shape[1]

    def _inputs(self, solutions: Sequence[Solution], marked: Sequence[Marked]) -> Any:
        pad = self.tokenizer.pad_token_id or 0
        rows = [torch.tensor(item.ids) for item in marked]
        ones = [torch.ones_like(row) for row in rows]
        return BatchFeature(
            {
                "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad),
                "attention_mask": pad_sequence(ones, batch_first=True),
            }
        )


class MmPrmFormat(Format):
    """Renders the mm-prm format with the same `Renderer` as training."""

    def __init__(self, processor: Any, tokens: PrmTokens, pixel_limits: Mapping[str, int] = NO_LIMITS) -> None:
        super().__init__("two_tokens", processor, tokens)
        self.renderer = Renderer(processor, tokens, pixel_limits)
        self.pixel_limits = pixel_limits
        self.yes_id, self.no_id = self.renderer.yes_id, self.renderer.no_id

    def text(self, solution: Solution) -> str:
        """Render a solution as text in the MM-PRM format."""
        return self.renderer.render(solution)

    def mark(self, solution: Solution) -> Marked:
        return self.mark_many([solution])[0]

    def mark_many(self, solutions: Sequence[Solution]) -> list[Marked]:
        marker, texts = self.renderer.marker_id, [self.text(solution) for solution in solutions]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [Marked(ids, [position for position, token in enumerate(ids) if token == marker]) for ids in encoded]

    def located(self, marked: Marked, ids: Sequence[int]) -> list[int]:
        """Return the indices of the markers, also if images are between them, as in an episode."""
        return [position for position, token in enumerate(ids) if token == self.renderer.marker_id]

    def _inputs(self, solutions: Sequence[Solution], marked: Sequence[Marked]) -> Any:
        return self.renderer.encode(solutions)


@dataclass(frozen=True, slots=True)
class Layout:
    """Describes how a PRM family writes the question and the steps.

    `write` returns a text or chat turns, with MARK for each marker. With `predicted`, the score is the model's
    prediction of the marker, so it is read one token earlier. Such a marker consists of ordinary characters, which may
    also occur in the steps.
    """

    write: Callable[[str, Steps], str | ChatTurns]
    head: Head
    predicted: bool = False
    images: bool = False


class WrittenFormat(Format):
    """Renders solutions for a family that tokenizes the whole solution as one text. Markers are located by character
    offset."""

    def __init__(self, layout: Layout, processor: Any, tokens: PrmTokens) -> None:
        super().__init__(layout.head, processor, tokens)
        self._layout = layout
        self._chat = isinstance(layout.write("?", ("?",)), list)
        if self._chat and not getattr(processor, "chat_template", None):
            raise CheckpointError(
                f"{type(processor).__name__}: has no chat template; add chat_template.jinja to the model folder"
            )
        if not self.tokenizer.is_fast:
            raise CheckpointError(
                f"{type(self.tokenizer).__name__}: cannot map tokens to characters; add tokenizer.json, the file of a "
                "fast tokenizer"
            )
        self._image = image_placeholder(processor) if layout.images and reads_images(processor) else ""
        marker = () if layout.predicted else (tokens.marker,)
        # A predicted marker may be a special token, but the text itself must not contain it.
        special = set(special_tokens(processor)) - ({tokens.marker} if layout.predicted else set())
        self._reserved = (MARK, *marker, *vision_tokens(processor, self._image), *sorted(special))
        if layout.predicted:
            self.yes_id, self.no_id = self._predicted_id(tokens.yes), self._predicted_id(tokens.no)
        elif layout.head == "two_tokens":
            self.yes_id, self.no_id = token_id(processor, tokens.yes), token_id(processor, tokens.no)
        self._marker_id = self.yes_id if layout.predicted else token_id(processor, tokens.marker)

    def text(self, solution: Solution) -> str:
        return self._text(solution, self.tokens.marker)[0]

    def mark(self, solution: Solution) -> Marked:
        check_solution(solution, bool(self._image), self._reserved)
        ids, _, positions = self._tokens(*self._text(solution, self.tokens.marker))
        # A marker that is not a special token can merge with the end of a step, and no score could then be read there.
        for number, position in enumerate(positions, start=1):
            if ids[position] != self._marker_id:
                raise DataError(
                    f"problem {solution.problem.id}: step {number}: its text merges with the following marker "
                    f"{self.tokens.marker!r}, which must be a token of its own; remove empty steps, or change its end"
                )
        return Marked(ids, [position - self._layout.predicted for position in positions])

    def _inputs(self, solutions: Sequence[Solution], marked: Sequence[Marked]) -> Any:
        images = [open_image(image) for solution in solutions for image in solution.problem.images]
        if not images:
            return super()._inputs(solutions, marked)
        return self.processor(
            text=[self.text(solution) for solution in solutions],
            images=images,
            padding=True,
            padding_side="right",
            add_special_tokens=not self._chat,
            return_tensors="pt",
        )

    def _text(self, solution: Solution, marker: str) -> tuple[str, list[int]]:
        """Return the solution's text and the character offset of each marker."""
        question = asked_question(solution.problem)
        if solution.problem.images:
            head = f"{self._image}\n" * len(solution.problem.images)
            question = head + question.replace(IMAGE, "").strip()
        written: Any = self._layout.write(question, solution.steps)
        if self._chat:
            written = templated(self.processor, written)
        *before, end = written.split(MARK)
        if len(before) != len(solution.steps):
            raise CheckpointError(
                f"{type(self.processor).__name__}: its chat template drops assistant turns; use the template released "
                "with the model"
            )
        starts = accumulate((len(marker) + len(piece) for piece in before[1:]), initial=len(before[0]))
        return marker.join([*before, end]), list(starts)

    def _tokens(self, text: str, characters: Sequence[int]) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """Tokenize a text; return its token ids, their (begin, end) character spans, and the index of the token that
        covers each character offset in `characters`."""
        # The chat template already wrote its special tokens.
        encoded = self.tokenizer(text, add_special_tokens=not self._chat, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        positions, token = [], 0
        for character in characters:
            while not spans[token][0] <= character < spans[token][1]:
                token += 1
            positions.append(token)
        return ids, spans, positions

    def _predicted_id(self, word: str) -> int:
        """Return the token id of `word` in an assistant turn that consists of this word alone.

        Raises CheckpointError if the word is not a single token there.
        """
        text, characters = self._text(Solution(Problem("", "?", ""), ("?",)), word)
        ids, spans, (position,) = self._tokens(text, characters)
        begin, end = spans[position]
        if not word or text[begin:end].strip() != word:
            raise CheckpointError(
                f"{word!r} must be one token in the assistant's turn, but is part of {text[begin:end]!r}; check tokens "
                "in prm.json and the model's tokenizer"
            )
        return ids[position]


class PieceFormat(Format):
    """Renders solutions for a family that tokenizes the question, steps and separators separately."""

    def __init__(self, head: Head, after_question: str, needs_bos: bool, processor: Any, tokens: PrmTokens) -> None:
        super().__init__(head, processor, tokens)
        self._after_question = after_question
        bos = self.tokenizer.bos_token_id
        if needs_bos and bos is None:
            raise CheckpointError(
                f"{type(self.tokenizer).__name__}: has no bos token, with which the format begins; set bos_token"
            )
        self._begin = [] if bos is None else [bos]
        self._separator = self._ids(tokens.marker)

    def mark(self, solution: Solution) -> Marked:
        check_solution(solution, False, ())
        ids = [*self._begin, *self._ids(asked_question(solution.problem) + self._after_question)]
        positions = []
        for step in solution.steps:
            ids += [*self._ids(step), *self._separator]
            positions.append(len(ids) - 1)
        return Marked(ids, positions)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def open_format(processor: Any, info: PrmInfo) -> Format:
    """Create the format of a PRM; raise CheckpointError if the tokenizer does not fit the PRM family."""
    if info.format == FORMAT:
        return MmPrmFormat(processor, info.tokens, info.pixel_limits)
    return _FORMATS[info.format](processor, info.tokens)


def _math_shepherd(question: str, steps: Steps) -> str:
    return f"{question} " + "\n".join(f"{step} {MARK}" for step in numbered(steps))


def _qwen(question: str, steps: Steps) -> ChatTurns:
    return [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "".join(step + MARK for step in steps)},
    ]


def _rlhflow(question: str, steps: Steps) -> ChatTurns:
    first, *others = (step.strip() for step in steps)
    return _asked((f"{question} {first}", *others))


def _visualprm(question: str, steps: Steps) -> ChatTurns:
    first, *others = steps
    opening = f"### Question:\n{question}\n\n### Solution Process:\n{first}"
    return [{"role": "system", "content": VISUALPRM_SYSTEM}, *_asked((opening, *others))]


def _asked(texts: Iterable[str]) -> ChatTurns:
    return [
        turn for text in texts for turn in ({"role": "user", "content": text}, {"role": "assistant", "content": MARK})
    ]


_FORMATS: dict[str, Callable[[Any, PrmTokens], Format]] = {
    "math-shepherd": partial(WrittenFormat, Layout(_math_shepherd, "two_tokens")),
    "qwen": partial(WrittenFormat, Layout(_qwen, "two_classes")),
    "rlhflow": partial(WrittenFormat, Layout(_rlhflow, "two_tokens", predicted=True)),
    "visualprm": partial(WrittenFormat, Layout(_visualprm, "two_tokens", predicted=True, images=True)),
    "skywork": partial(PieceFormat, "value", "\n", True),
    "trl": partial(PieceFormat, "two_classes", "", False),
}
