"""The MM-PRM format: how a solution becomes text and tokens. Its only renderer, for training, scoring and serving.

After an empty user turn the assistant's turn reads `<image>\\nQuestion: {q}\\nProcess: {s1}<prm>{s2}<prm>…`, where
`<image>` stands for whatever the model's chat template writes for one picture, and `<prm>` is a special token. The
judgement of a step is read at its `<prm>`, without shift: P(right) = softmax of the logits of [Yes, No], first.

Nothing here imports torch: `processor` is a transformers processor, or the tokenizer of a text-only model.

Shapes: B solution, T token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmprm.backbone.processor import (
    _PROBE,
    _around,
    picture_placeholder,
    reads_pictures,
    token_id,
    tokenizer_of,
    vision_tokens,
)
from mmprm.data.choices import asked_question
from mmprm.errors import CheckpointError, DataError
from mmprm.prm.info import PrmTokens
from mmprm.problems import open_picture
from mmprm.prompts import IMAGE
from mmprm.types import Solution


class Renderer:
    """Text and tokens of solutions for one processor; made once, since reading a chat template is slow."""

    def __init__(self, processor: Any, tokens: PrmTokens) -> None:
        """Raises CheckpointError where a token is not one token, or the processor has no chat template."""
        if not getattr(processor, "chat_template", None):
            raise CheckpointError(f"{type(processor).__name__}: has no chat template; add it to the model folder")
        self.processor = processor
        self.tokens = tokens
        self.marker_id, self.yes_id, self.no_id = (
            token_id(processor, token) for token in (tokens.marker, tokens.yes, tokens.no)
        )
        empty_turn = {"role": "user", "content": ""}
        self._before, self._after = _around([empty_turn, {"role": "assistant", "content": _PROBE}], processor)
        self.picture = picture_placeholder(processor) if reads_pictures(processor) else ""
        """What the chat template writes for one picture: with Qwen-VL three tokens around a pad, with InternVL one."""
        self._reserved = (tokens.marker, *vision_tokens(processor, self.picture), *special_tokens(processor))

    def render(self, solution: Solution) -> str:
        """The text of a solution. Raises DataError for one without steps or with a reserved token in its text."""
        check_solution(solution, bool(self.picture), self._reserved)
        problem = solution.problem
        question, head = asked_question(problem), ""
        if problem.pictures:
            question, head = question.replace(IMAGE, "").strip(), self.picture * len(problem.pictures) + "\n"
        process = "".join(step + self.tokens.marker for step in solution.steps)
        return f"{self._before}{head}Question: {question}\nProcess: {process}{self._after}"

    def encode(self, solutions: Sequence[Solution]) -> Any:
        """Model inputs (a BatchFeature of tensors, right-padded): input_ids_BT, attention_mask_BT and the pictures.

        Row b holds exactly len(solutions[b].steps) markers. Raises DataError like `render`, and for broken pictures.
        """
        texts = [self.render(solution) for solution in solutions]
        pictures = [open_picture(picture) for solution in solutions for picture in solution.problem.pictures]
        inputs = self.processor(
            text=texts,
            **({"images": pictures} if pictures else {}),
            padding=True,
            padding_side="right",
            add_special_tokens=False,  # the chat template has written them
            return_tensors="pt",
        )
        counts_B = (inputs["input_ids"] == self.marker_id).sum(dim=1).tolist()
        assert counts_B == [len(solution.steps) for solution in solutions], "one marker a step"
        return inputs


def check_solution(solution: Solution, pictures: bool, reserved: Iterable[str]) -> None:
    """Raise DataError for what no format can express; `pictures`: whether this one can hold them."""
    problem, name = solution.problem, f"problem {solution.problem.id}"
    if not solution.steps:
        raise DataError(f"{name}: a solution to be judged must have at least one step")
    if problem.pictures and not pictures:
        raise DataError(f"{name}: has pictures, but this process reward model reads text only; use one that reads both")
    for place, text in enumerate((asked_question(problem), *solution.steps)):
        for token in reserved:
            if token in text:
                where = f"step {place}" if place else "question"
                raise DataError(f"{name}: {where} contains {token!r}, which the format reserves; remove it")


def special_tokens(processor: Any) -> list[str]:
    """Special tokens of the tokenizer: inside a text they would end a turn or a sequence."""
    return sorted(token.content for token in tokenizer_of(processor).added_tokens_decoder.values() if token.special)


def check_tokens(processor: Any, tokens: PrmTokens, added: bool) -> None:
    """Raise CheckpointError where a judgement token is not one token, unless it is to be `added`, and without a chat
    template."""
    if not getattr(processor, "chat_template", None):
        raise CheckpointError(f"{type(processor).__name__}: has no chat template; add it to the model folder")
    for token in () if added else (tokens.yes, tokens.no):
        token_id(processor, token)
