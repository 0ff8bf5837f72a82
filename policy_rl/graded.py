"""Groups as the update sees them: graded, rewarded, scored. Frozen data, and its JSON form for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mmprm.types import Grading, Problem, Verdict
from policy_rl.types import Response, Reward


@dataclass(frozen=True, slots=True)
class StepRewards:
    """P(step is right) of a response's steps by a process reward model, and for each of its tokens the index of its
    step, −1 outside of steps."""

    scores: tuple[float, ...]
    step_of_token: tuple[int, ...]


class Process(Protocol):
    async def score(self, problem: Problem, responses: Sequence[Response]) -> Sequence[StepRewards | None]:
        """One a response, in order; None where it could not be split into steps or scored."""
        ...


@dataclass(frozen=True, slots=True)
class GradedResponse:
    """A reward without a total takes no part: its sample was dropped and counted."""

    response: Response
    grading: Grading
    reward: Reward
    process: StepRewards | None = None

    @property
    def right(self) -> bool:
        """By the accuracy in force, which need not be the grader's verdict."""
        return self.reward.parts.get("accuracy") == 1


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """The responses to one problem by the policy of `version`, in draw order."""

    problem: Problem
    prompt_tokens: int
    version: int
    responses: tuple[GradedResponse, ...]

    @property
    def accuracies(self) -> list[float]:
        """1 or 0 of the responses that take part and have a known verdict."""
        parts = [each.reward.parts.get("accuracy") for each in self.responses if each.reward.total is not None]
        return [part for part in parts if part is not None]

    @property
    def known(self) -> int:
        """Responses that take part."""
        return sum(each.reward.total is not None for each in self.responses)


def to_json(group: GradedGroup) -> dict[str, Any]:
    """The problem goes by its id."""
    return {
        "problem": group.problem.id,
        "prompt_tokens": group.prompt_tokens,
        "version": group.version,
        "responses": [asdict(each) for each in group.responses],
    }


def from_json(data: Mapping[str, Any], problems: Mapping[str, Problem]) -> GradedGroup:
    responses = tuple(_response(each) for each in data["responses"])
    return GradedGroup(problems[data["problem"]], data["prompt_tokens"], data["version"], responses)


def _response(data: Mapping[str, Any]) -> GradedResponse:
    raw, grading, process = data["response"], data["grading"], data["process"]
    return GradedResponse(
        Response(raw["text"], tuple(raw["token_ids"]), tuple(raw["logprobs"]), raw["finish_reason"]),
        Grading(Verdict(grading["verdict"]), grading["extracted"], grading["reason"]),
        Reward(**data["reward"]),
        process and StepRewards(tuple(process["scores"]), tuple(process["step_of_token"])),
    )
