"""What the stages of a training step hand to each other: frozen data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True, slots=True)
class Reward:
    """`total` is None where a part that counts is unknown: the sample is dropped and counted. `parts` are unweighted,
    for the log."""

    total: float | None
    parts: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Experience:
    """One response and what its update needs. Arrays hold one number for each of its tokens.

    Responses of the same `group` answer the same problem and share its prompt. `prompt_tokens` is the prompt's length
    as the engine counted it. `engine` are the log-probabilities that the engine drew the tokens with; `old`, `ref` and
    `values` come from Trainer.log_probs; None: not needed (`old`: the response was sampled by the weights of this very
    update). `mask` is False on tokens that do not count; None: all count.
    """

    problem: Problem
    group: int
    prompt_tokens: int
    token_ids: tuple[int, ...]
    engine: np.ndarray | None = None
    old: np.ndarray | None = None
    ref: np.ndarray | None = None
    values: np.ndarray | None = None
    advantages: np.ndarray | None = None
    returns: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def length(self) -> int:
        return self.prompt_tokens + len(self.token_ids)

    @property
    def counted(self) -> np.ndarray:
        return np.ones(len(self.token_ids), dtype=bool) if self.mask is None else self.mask


ARRAYS = ("engine", "old", "ref", "values", "advantages", "returns")
