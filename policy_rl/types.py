"""Define the frozen dataclasses that the phases of a training step pass to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmprm.types import Problem


@dataclass(frozen=True, slots=True)
class Response:
    """Holds a sampled response as returned by the engine. `finish_reason` is "stop", "length" or "abort".

    `token_ids` are exactly the generated tokens, including the end-of-turn token; training never retokenizes `text`.
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
    """Holds the responses to one problem, all sampled from policy version `version`.

    The version is the number of training steps completed before sampling. `prompt_tokens` is the length of the prompt,
    including images, as counted by the engine; the trainer's count must match it.
    """

    problem: Problem
    responses: tuple[Response, ...]
    version: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Reward:
    """Holds a response's total reward, and its unweighted parts, which are only logged.

    `total` is None if a part that contributes to it is unknown; the sample is then dropped and counted.
    """

    total: float | None
    parts: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """Holds a response and the arrays that its update needs, with one value per response token.

    Responses of the same `group` answer the same problem and share its prompt. `prompt_tokens` is the length of the
    prompt as counted by the engine. `engine` holds the log-probabilities with which the engine sampled the tokens.
    `old`, `ref` and `values` come from Trainer.log_probs, and are None if not needed; `old` is not needed if the
    response was sampled from the weights that this update starts from. `mask` is False on tokens that are not trained
    on; None means that all are.
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
        """Return the number of tokens in prompt and response together."""
        return self.prompt_tokens + len(self.token_ids)

    @property
    def counted(self) -> np.ndarray:
        """Return a boolean array that is True on the response tokens to train on."""
        return np.ones(len(self.token_ids), dtype=bool) if self.mask is None else self.mask


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Holds log-probabilities and values per response token; None if not requested or not available."""

    old: np.ndarray | None = None
    ref: np.ndarray | None = None
    values: np.ndarray | None = None


ARRAYS = ("engine", "old", "ref", "values", "advantages", "returns")
"""Fields of TrainingSample that hold one value per response token."""
