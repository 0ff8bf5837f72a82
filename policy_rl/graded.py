"""Define groups of responses with their grades, rewards and process scores: the input of the policy update.

The classes are frozen dataclasses, which checkpoints store as JSON.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from mmprm.types import Grading, ImageRef, Problem, Verdict
from policy_rl.types import PlayedTurn, PlayedTurns, Response, Reward, TokenRow, equal_fields


@dataclass(frozen=True, slots=True, eq=False)
class StepRewards:
    """Contains a process reward model's score for each step of a response: P(no error so far).

    `step_of_token` holds the step index of each response token, or −1 for tokens outside all steps. It may be given as
    any sequence, and is stored as an int32 array.
    """

    scores: tuple[float, ...]
    step_of_token: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_of_token", np.asarray(self.step_of_token, dtype=np.int32))

    def __eq__(self, other: object) -> bool:
        return equal_fields(self, other)


class Process(Protocol):
    """Protocol for scoring the steps of responses."""

    async def score(self, problem: Problem, responses: Sequence[Response]) -> Sequence[StepRewards | None]:
        """Score the responses to one problem, and return one result per response, in order.

        The result is None if a response cannot be split into steps or scored.
        """
        ...


@dataclass(frozen=True, slots=True)
class GradedResponse:
    """Combines a response with its grade and rewards.

    If `reward.total` is None, the response was dropped and is not trained on.
    """

    response: Response
    grading: Grading
    reward: Reward
    process: StepRewards | None = None

    @property
    def correct(self) -> bool:
        """Return whether the response is correct according to rewards.accuracy.

        This can differ from the grader's verdict, for example with rewards.accuracy=exact_label.
        """
        return self.reward.parts.get("accuracy") == 1


@dataclass(frozen=True, slots=True)
class BranchedPrefix:
    """Contains responses that continue the first `tokens` tokens of response number `response` of a group.

    They are complete responses, which begin with exactly these tokens. `score` is the PRM's score of the prefix, if it
    has one.
    """

    response: int
    tokens: int
    score: float | None
    continuations: tuple[GradedResponse, ...]

    @property
    def known(self) -> tuple[GradedResponse, ...]:
        """Return the continuations with a known reward."""
        return tuple(each for each in self.continuations if each.reward.total is not None)


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """Contains the responses to one problem, all sampled from policy version `version`, in sampling order.

    `branches` are continuations of some of them, ordered by response and then by length.
    """

    problem: Problem
    prompt_tokens: int
    version: int
    responses: tuple[GradedResponse, ...]
    branches: tuple[BranchedPrefix, ...] = ()

    @property
    def accuracies(self) -> list[float]:
        """Return the known accuracies (1 or 0) of the responses with a known reward."""
        parts = [each.reward.parts.get("accuracy") for each in self.responses if each.reward.total is not None]
        return [part for part in parts if part is not None]

    @property
    def known(self) -> int:
        """Return the number of responses with a known reward; only these are used for training."""
        return sum(each.reward.total is not None for each in self.responses)


def to_json(group: GradedGroup) -> dict[str, Any]:
    """Serialize a graded group to JSON. Its problem is stored by id only."""
    images: dict[str, str] = {}
    return {
        "problem": group.problem.id,
        "prompt_tokens": group.prompt_tokens,
        "version": group.version,
        "responses": [_plain(asdict(each), images) for each in group.responses],
        "branches": [_plain(asdict(each), images) for each in group.branches],
        "images": images,
    }


def from_json(data: Mapping[str, Any], problems: Mapping[str, Problem]) -> GradedGroup:
    """Deserialize a graded group. `problems` maps ids to problems."""
    # Groups of earlier versions have neither branches nor images.
    images = {key: base64.b64decode(value) for key, value in data.get("images", {}).items()}
    responses = tuple(_response(each, images) for each in data["responses"])
    branches = tuple(_branch(each, images) for each in data.get("branches", ()))
    return GradedGroup(problems[data["problem"]], data["prompt_tokens"], data["version"], responses, branches)


def _plain(value: Any, images: dict[str, str]) -> Any:
    """Convert arrays in nested dictionaries and tuples to lists, and encoded images to keys of `images`.

    `images` receives their bytes, so that an image of many turns and episodes is stored once.
    """
    if isinstance(value, dict):
        return {key: _plain(each, images) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each, images) for each in value]
    if isinstance(value, bytes):
        key = hashlib.sha256(value).hexdigest()
        images[key] = base64.b64encode(value).decode()
        return key
    return value.tolist() if isinstance(value, np.ndarray) else value


def _branch(data: Mapping[str, Any], images: Mapping[str, bytes]) -> BranchedPrefix:
    continuations = tuple(_response(each, images) for each in data["continuations"])
    return BranchedPrefix(data["response"], data["tokens"], data["score"], continuations)


def _response(data: Mapping[str, Any], images: Mapping[str, bytes]) -> GradedResponse:
    raw, process = data["response"], data["process"]
    played = raw.get("played")  # responses of earlier versions have neither this nor segments
    return GradedResponse(
        Response(
            raw["text"],
            raw["token_ids"],
            raw["logprobs"],
            raw["finish_reason"],
            played and _played(played, images),
            tuple(map(tuple, raw.get("segments", ()))),
        ),
        _grading(data["grading"]),
        Reward(**data["reward"]),
        process and StepRewards(tuple(process["scores"]), process["step_of_token"]),
    )


def _played(data: Mapping[str, Any], images: Mapping[str, bytes]) -> PlayedTurns:
    turns = tuple(
        PlayedTurn(_parts(turn["observation"], images), turn["text"], turn["reward"], turn["is_valid"])
        for turn in data["turns"]
    )
    rows = tuple(TokenRow(row["prompt_ids"], row["stop"], _parts(row["images"], images)) for row in data["rows"])
    end = None if data.get("end") is None else _parts(data["end"], images)  # groups of earlier versions lack it
    return PlayedTurns(turns, data["turn_of_token"], rows, _grading(data["grading"]), end)


def _parts(data: Sequence[Any], images: Mapping[str, bytes]) -> tuple[Any, ...]:
    """Restore texts and images."""
    return tuple(part if isinstance(part, str) else ImageRef(part["path"], images.get(part["data"])) for part in data)


def _grading(data: Mapping[str, Any]) -> Grading:
    return Grading(Verdict(data["verdict"]), data["extracted"], data["reason"])
