"""Define the frozen data that the stages of a training step exchange."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class Response:
    """Hold one sampled response as returned by the engine. `finish_reason` is "stop", "length" or "abort".

    `token_ids` are exactly the generated tokens, including the end of turn; training never tokenizes `text` again.
    `logprobs` has one value per token: the natural logarithm of the probability with which it was sampled.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.logprobs), "one log-probability per token"


@dataclass(frozen=True, slots=True)
class Group:
    """Hold the responses to one problem, all by the policy of `version` (the number of weight updates applied to it).

    `prompt_tokens` is the length of the prompt, including images, as counted by the engine; the trainer's count must be
    equal.
    """

    problem: Problem
    responses: tuple[Response, ...]
    version: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Reward:
    """Hold the reward of a response. `parts` are unweighted and only logged.

    `total` is None if a part with a weight is unknown: the sample is then dropped and counted.
    """

    total: float | None
    parts: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """Hold one response and the values that its update needs. Arrays have one value per response token.

    Responses of the same `group` answer the same problem and share its prompt. `prompt_tokens` is the length of the
    prompt as counted by the engine. `engine` has the log-probabilities with which the engine sampled the tokens. `old`,
    `ref` and `values` come from Trainer.log_probs; None means not needed (for `old`: the response was sampled by the
    weights that this update starts from). `mask` is False on tokens that do not count; None means that all count.
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
        """Return the number of tokens of prompt and response."""
        return self.prompt_tokens + len(self.token_ids)

    @property
    def counted(self) -> np.ndarray:
        """Return which response tokens count, as a boolean array."""
        return np.ones(len(self.token_ids), dtype=bool) if self.mask is None else self.mask


ARRAYS = ("engine", "old", "ref", "values", "advantages", "returns")
"""Fields of TrainingSample that hold one value per response token."""
