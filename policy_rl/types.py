"""What the stages of a training step hand to each other: frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response, as the engine drew it. `finish_reason` is "stop", "length" or "abort".

    `token_ids` are exactly the generated tokens, the end of turn included; training never tokenises `text` again.
    `logprobs` are the natural logarithms of the probabilities that they were drawn with, one a token.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.logprobs), "one log-probability a token"


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one problem, all by the policy of `version` (the number of weight updates that it has had).

    `prompt_tokens` is the length of the prompt, pictures included, as the engine counted it: the trainer's own must
    be equal.
    """

    problem: Problem
    responses: tuple[Response, ...]
    version: int
    prompt_tokens: int
