"""Define the frozen dataclasses that the phases of a training step pass to each other."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mmprm.types import Problem


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """Represents a sampled response as returned by the engine. `finish_reason` is "stop", "length" or "abort".

    `token_ids` are exactly the generated tokens, including the end-of-turn token; training never retokenizes `text`.
    `logprobs` has one value per token: the natural logarithm of the probability with which it was sampled. Both may be
    given as any sequence; they are stored as int32 and float32 arrays.
    """

    text: str
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", np.asarray(self.token_ids, dtype=np.int32))
        object.__setattr__(self, "logprobs", np.asarray(self.logprobs, dtype=np.float32))
        assert len(self.token_ids) == len(self.logprobs), "one log-probability per token"

    def __eq__(self, other: object) -> bool:
        return equal_fields(self, other)

    def prefix(self, tokens: int) -> ResponsePrefix:
        """Return the first `tokens` tokens."""
        return ResponsePrefix(self.token_ids[:tokens], self.logprobs[:tokens])


@dataclass(frozen=True, slots=True, eq=False)
class ResponsePrefix:
    """Holds the first tokens of a response and their log-probabilities; see Response."""

    token_ids: np.ndarray
    logprobs: np.ndarray


@dataclass(frozen=True, slots=True)
class Group:
    """Contains the responses to one problem, all sampled from policy version `version`.

    The version is the number of training steps completed before sampling. `prompt_tokens` is the length of the prompt,
    including images, as counted by the engine; the trainer's count must match it.
    """

    problem: Problem
    responses: tuple[Response, ...]
    version: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Reward:
    """Contains a response's total reward and its unweighted parts, which are only logged.

    `total` is None if a part that contributes to it is unknown; the sample is then dropped and counted.
    """

    total: float | None
    parts: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """Combines a response with the arrays that an update needs, which have one value per response token.

    Responses of the same `group` answer the same problem and share its prompt. `prompt_tokens` is the length of the
    prompt as counted by the engine. `engine` holds the log-probabilities with which the engine sampled the tokens.
    `old`, `ref`, `teacher` and `values` come from Trainer.log_probs, and are None if not needed; `old` is not needed if
    the response was sampled from the weights that this update starts from. `mask` is False on tokens that are not
    trained on; None means that all are.
    """

    problem: Problem
    group: int
    prompt_tokens: int
    token_ids: np.ndarray
    engine: np.ndarray | None = None
    old: np.ndarray | None = None
    ref: np.ndarray | None = None
    values: np.ndarray | None = None
    advantages: np.ndarray | None = None
    returns: np.ndarray | None = None
    mask: np.ndarray | None = None
    teacher: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", np.asarray(self.token_ids, dtype=np.int32))

    @property
    def length(self) -> int:
        """Return the number of tokens in prompt and response together."""
        return self.prompt_tokens + len(self.token_ids)

    @property
    def counted(self) -> np.ndarray:
        """Return a boolean array that is True on the response tokens to train on."""
        return np.ones(len(self.token_ids), dtype=bool) if self.mask is None else self.mask


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Contains log-probabilities and values per response token. Fields that were not computed are None."""

    old: np.ndarray | None = None
    ref: np.ndarray | None = None
    values: np.ndarray | None = None
    teacher: np.ndarray | None = None


ARRAYS = ("engine", "old", "ref", "values", "advantages", "returns")
"""Fields of TrainingSample that hold one value per response token and that an update reads."""


def equal_fields(left: Any, right: object) -> bool:
    """Return whether two dataclass instances have the same type and equal fields, which may be arrays."""
    if type(left) is not type(right):
        return False
    return all(np.array_equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
