"""Render solutions in the MM-PRM format as text and tokens for training, scoring and serving.

After an empty user turn, the assistant's turn is `<image>\\nQuestion: {q}\\nProcess: {s1}<prm>{s2}<prm>…`. `<image>`
stands for the placeholder that the model's chat template writes for one image, and `<prm>` is a special token. Each
step is scored at its own `<prm>`, without a shift by one token: P(correct) = softmax([logit_Yes, logit_No])[0].

In an episode, each action follows what the policy saw before it, with images in place, and is scored after the next
observation, which shows its effect: `Question: {o1}\nProcess: {a1}\n{o2}<prm>\n{a2}\n{o3}<prm>…{aN}<prm>`. The last
action is scored without one if none is given, as when candidates for the next action are compared. The first
observation takes the place of the question.

Nothing here imports torch: `processor` is a transformers processor, or the tokenizer of a text-only model.

Shapes: B solution, T token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mmprm.backbone.processor import (
    _PROBE,
    _around,
    image_placeholder,
    reads_images,
    token_id,
    tokenizer_of,
    vision_tokens,
)
from mmprm.data.choices import asked_question
from mmprm.data.marks import without_marks
from mmprm.data.media_inputs import MEDIA_KINDS, processor_arguments, reads_clips
from mmprm.errors import CheckpointError, DataError
from mmprm.prm.info import PrmTokens
from mmprm.types import Solution

NO_LIMITS: Mapping[str, int] = MappingProxyType({})
"""Pixel limits of a PRM that reads images and video frames in the processor's own size."""


class Renderer:
    """Renders solutions in the MM-PRM format for one processor.

    Reuse an instance, because reading a chat template is slow.
    """

    def __init__(self, processor: Any, tokens: PrmTokens, pixel_limits: Mapping[str, int] = NO_LIMITS) -> None:
        """Look up the chat template and token ids. `pixel_limits` are those of the PRM's prm.json.

        Raises CheckpointError if there is no chat template or a judgment token is not a single token.
        """
        if not getattr(processor, "chat_template", None):
            raise CheckpointError(
                f"{type(processor).__name__}: has no chat template; add chat_template.jinja to the model folder"
            )
        self.processor = processor
        self.tokens = tokens
        self.pixel_limits = pixel_limits
        self.marker_id, self.yes_id, self.no_id = (
            token_id(processor, token) for token in (tokens.marker, tokens.yes, tokens.no)
        )
        # The template's text around the assistant's turn is the same for every solution, so it is rendered once.
        empty_turn = {"role": "user", "content": ""}
        self._before, self._after = _around([empty_turn, {"role": "assistant", "content": _PROBE}], processor)
        self.image = image_placeholder(processor) if reads_images(processor) else ""
        """Text that the chat template writes for one image: vision start, pad and vision end for Qwen-VL, one token for
        InternVL.
        """
        self.placeholders = {"image": self.image}
        """Text that the chat template writes for one medium of each kind."""
        if reads_clips(processor):
            self.placeholders |= {kind: image_placeholder(processor, kind) for kind in ("video", "audio")}
        written = "".join(self.placeholders.values())
        self._reserved = (tokens.marker, *vision_tokens(processor, written), *special_tokens(processor))

    def render(self, solution: Solution) -> str:
        """Render a solution as text; raise DataError if it has no steps or contains a reserved token."""
        check_solution(solution, bool(self.image), self._reserved, turns=True, clips="video" in self.placeholders)
        body = self._episode(solution) if solution.observations else self._solution(solution)
        return f"{self._before}{body}{self._after}"

    def _solution(self, solution: Solution) -> str:
        problem = solution.problem
        question, head = asked_question(problem), ""
        if problem.media:
            placeholders = (self.placeholders[MEDIA_KINDS[type(each)]] for each in problem.media)
            question, head = without_marks(question), "".join(placeholders) + "\n"
        process = "".join(step + self.tokens.marker for step in solution.steps)
        return f"{head}Question: {question}\nProcess: {process}"

    def _episode(self, solution: Solution) -> str:
        first, *later = (
            "".join(part if isinstance(part, str) else self.image for part in parts) for parts in solution.observations
        )
        turns = [f"{done}\n{seen}" for done, seen in zip(solution.steps, later, strict=False)]
        turns += solution.steps[len(later) :]
        return f"Question: {first}\nProcess: " + "\n".join(turn + self.tokens.marker for turn in turns)

    def encode(self, solutions: Sequence[Solution]) -> Any:
        """Return model inputs as a BatchFeature: right-padded input_ids_BT, attention_mask_BT, and tensors of media.

        Row b holds exactly len(solutions[b].steps) markers. Raises DataError like `render`, and for broken images.
        """
        texts = [self.render(solution) for solution in solutions]
        media = [each for solution in solutions for each in solution.media]
        inputs = self.processor(
            text=texts,
            **processor_arguments(self.processor, media, self.pixel_limits),
            padding=True,
            padding_side="right",
            add_special_tokens=False,  # the chat template already wrote them
            return_tensors="pt",
        )
        # A marker that also occurred in a text, or merged with it, would shift all later scores.
        counts_B = (inputs["input_ids"] == self.marker_id).sum(dim=1).tolist()
        assert counts_B == [len(solution.steps) for solution in solutions], "one marker per step"
        return inputs


def check_solution(
    solution: Solution, images: bool, reserved: Iterable[str], turns: bool = False, clips: bool = False
) -> None:
    """Raise DataError if a PRM format cannot express the solution.

    `images`, `turns` and `clips` say whether the format supports images, episodes, and videos and audio.
    """
    name = f"problem {solution.problem.id}"
    if not solution.steps:
        raise DataError(f"{name}: a solution must have at least one step to be scored; remove it or add steps")
    if solution.observations and not turns:
        raise DataError(f"{name}: is an episode, which only the format mm-prm expresses; use a model of mmprm train")
    if solution.images and not images:
        raise DataError(f"{name}: has images, but this process reward model reads text only; use a multimodal one")
    if not clips and len(solution.media) > len(solution.images):
        raise DataError(
            f"{name}: has videos or audio, but this process reward model reads none; use one of Qwen2.5-Omni"
        )
    for where, text in _texts(solution):
        for token in reserved:
            if token in text:
                raise DataError(f"{name}: {where} contains {token!r}, which the format reserves; remove it")


def _texts(solution: Solution) -> Iterator[tuple[str, str]]:
    """Yield the name and content of each text that is rendered."""
    if not solution.observations:
        yield "question", asked_question(solution.problem)
    for number, parts in enumerate(solution.observations, start=1):
        yield from ((f"observation {number}", part) for part in parts if isinstance(part, str))
    yield from ((f"step {number}", step) for number, step in enumerate(solution.steps, start=1))


def special_tokens(processor: Any) -> list[str]:
    """Return the tokenizer's special tokens, which must not occur in a text because they could end a turn."""
    return sorted(token.content for token in tokenizer_of(processor).added_tokens_decoder.values() if token.special)


def check_tokens(processor: Any, tokens: PrmTokens, added: bool) -> None:
    """Raise CheckpointError if there is no chat template, or if a judgment token is not a single token.

    With `added`, the judgment tokens may be missing, because they will be added to the vocabulary.
    """
    if not getattr(processor, "chat_template", None):
        raise CheckpointError(
            f"{type(processor).__name__}: has no chat template; add chat_template.jinja to the model folder"
        )
    for token in () if added else (tokens.yes, tokens.no):
        token_id(processor, token)
