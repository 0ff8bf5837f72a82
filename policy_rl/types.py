"""Define the frozen dataclasses that the phases of a training step pass to each other."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mmprm.types import Grading, ImageRef, Problem

ObservationParts = tuple[str | ImageRef, ...]
"""Texts and images of an observation, in order."""


@dataclass(frozen=True, slots=True)
class PlayedTurn:
    """Holds one turn of an episode: what the policy saw, the text of its action, and the environment's reward.

    `is_valid` is whether the text held a valid action, or None if the environment does not say so.
    """

    observation: ObservationParts
    text: str
    reward: float
    is_valid: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """Describes a sequence in which a model reads tokens of an episode: a prompt, the tokens, and all images of both.

    `prompt_ids` are those of the engine, with one token per image feature. `stop` is the index after the row's last
    token in the episode's `token_ids`; a row begins where the previous one stops.
    """

    prompt_ids: np.ndarray
    stop: int
    images: tuple[ImageRef, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", np.asarray(self.prompt_ids, dtype=np.int32))

    def __eq__(self, other: object) -> bool:
        return equal_fields(self, other)


@dataclass(frozen=True, slots=True, eq=False)
class PlayedTurns:
    """Holds the turns of an episode, how its tokens belong to them, its outcome, and what the environment showed at the
    end.

    `turn_of_token` is the index of the turn in which each token was generated, or −1 for tokens of observations. There
    is one row if every prompt shows all images, and one row per turn otherwise.
    """

    turns: tuple[PlayedTurn, ...]
    turn_of_token: np.ndarray
    rows: tuple[TokenRow, ...]
    grading: Grading
    end: ObservationParts | None = None
    """What the environment showed after the last turn, or None in groups of earlier versions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "turn_of_token", np.asarray(self.turn_of_token, dtype=np.int32))

    def __eq__(self, other: object) -> bool:
        return equal_fields(self, other)

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts of the actions."""
        return tuple(turn.text for turn in self.turns)


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """Represents a sampled response as returned by the engine.

    `finish_reason` is "stop", "length" or "abort", or "interrupted" until RolloutPool has continued the response.

    `token_ids` are exactly the generated tokens, including the end-of-turn token; training never retokenizes `text`.
    `logprobs` has one value per token: the natural logarithm of the probability with which it was sampled. Both may be
    given as any sequence; they are stored as int32 and float32 arrays.

    With an environment, a response is an episode from its first action on. Its text is that of its actions, tokens of
    observations have the log-probability 0, and its finish_reason is "length" if a limit ended it.

    If new weights interrupted the response, `segments` are the policy versions that sampled its tokens, as pairs
    (version, number of tokens), in order. It is empty if one version sampled all tokens.
    """

    text: str
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str
    played: PlayedTurns | None = None
    segments: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", np.asarray(self.token_ids, dtype=np.int32))
        object.__setattr__(self, "logprobs", np.asarray(self.logprobs, dtype=np.float32))
        assert len(self.token_ids) == len(self.logprobs), "one log-probability per token"

    def __eq__(self, other: object) -> bool:
        return equal_fields(self, other)

    @property
    def ends_within_step(self) -> bool:
        """Return whether the token limit may have cut off the last step; the turns of an episode are always whole."""
        return self.finish_reason == "length" and self.played is None

    @property
    def mask(self) -> np.ndarray | None:
        """Return a boolean array that is True on the tokens that the policy generated, or None if it generated all."""
        return None if self.played is None else self.played.turn_of_token >= 0

    @property
    def token_count(self) -> int:
        """Return the number of tokens that the policy generated."""
        return len(self.token_ids) if self.mask is None else int(self.mask.sum())

    @property
    def observations(self) -> tuple[ObservationParts, ...]:
        """Return what the policy saw before each turn of an episode, and what followed the last one, if it is known;
        empty for other responses."""
        if self.played is None:
            return ()
        end = () if self.played.end is None else (self.played.end,)
        return (*(turn.observation for turn in self.played.turns), *end)

    def prefix(self, tokens: int) -> ResponsePrefix:
        """Return the first `tokens` tokens."""
        return ResponsePrefix(self.token_ids[:tokens], self.logprobs[:tokens], self.played)


@dataclass(frozen=True, slots=True, eq=False)
class ResponsePrefix:
    """Holds the first tokens of a response and their log-probabilities; see Response.

    `played` are the turns of the whole episode that begins with these tokens.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    played: PlayedTurns | None = None

    @property
    def token_count(self) -> int:
        """Return the number of tokens that the policy generated."""
        count = len(self.token_ids)
        return count if self.played is None else int((self.played.turn_of_token[:count] >= 0).sum())


@dataclass(frozen=True, slots=True)
class Group:
    """Contains the responses to one problem, sampled from policy version `version`.

    The version is the number of training steps completed before sampling. If new weights interrupted a response, it is
    the version of its first tokens (see Response.segments). `prompt_tokens` is the length of the prompt,
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
    trained on; None means that all are. `rows` are the sequences of an episode; policy_rl.trainer.rows splits it into
    one sample per row.
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
    rows: tuple[TokenRow, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", np.asarray(self.token_ids, dtype=np.int32))

    @property
    def shows_images(self) -> bool:
        """Return whether the prompt or an observation has images, videos or audio."""
        return bool(self.problem.media or any(row.images for row in self.rows))

    @property
    def length(self) -> int:
        """Return the number of tokens in prompt and response together."""
        return self.prompt_tokens + len(self.token_ids)

    @property
    def counted(self) -> np.ndarray:
        """Return a boolean array that is True on the response tokens to train on."""
        return np.ones(len(self.token_ids), dtype=bool) if self.mask is None else self.mask


def as_sample(problem: Problem, group: int, prompt_tokens: int, response: Response) -> TrainingSample:
    """Create the training sample of a response, without advantages. `group` is the index of its group."""
    engine = np.array(response.logprobs, dtype=np.float32)
    rows = () if response.played is None else response.played.rows
    if rows:
        prompt_tokens = len(rows[0].prompt_ids)
    return TrainingSample(
        problem, group, prompt_tokens, response.token_ids, engine=engine, mask=response.mask, rows=rows
    )


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
