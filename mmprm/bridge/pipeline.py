"""Turn problems with images into rows of thoughts and answers, with the method that produced Vision-R1's cold-start
data.

A vision-language model (the seer) explains the known answer, and from its explanation describes the image. A reasoning
model that sees only the description (the reasoner) solves the problem. A solution is kept if its graded answer is
correct and no phrase reveals that the image was never seen.

1. The description never reaches the training data; only thoughts and answer do.
2. Every reply is cached by content, so a run that resumes requests only the missing replies.
3. A failed request, an unknown verdict or a reply that was cut off is never kept, and is counted by its reason.

Source: Huang et al., Vision-R1, section on cold-start initialization. Its prompts and code are not published; these
prompts are our own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mmprm.bridge.config import BridgeConfig
from mmprm.bridge.prompts import describe_request, explain_request, solve_request
from mmprm.bridge.role import Said
from mmprm.bridge.wording import Wording, leaks
from mmprm.client import Failure
from mmprm.data.choices import asked_question
from mmprm.data.images import open_image
from mmprm.data.marks import check_text, count_marks
from mmprm.errors import DataError, EngineStoppedError, SamplingError
from mmprm.labels.duplicates import near_duplicates
from mmprm.types import Grader, Problem, Verdict

KEPT_REASON = "kept"
PROBLEMS_IN_FLIGHT = 512
"""Maximum number of problems in progress; the clients limit the number of requests."""


class Asks(Protocol):
    """Protocol of objects that send requests to a model; see ModelRole."""

    async def ask(self, request: Problem, seed: int) -> Said: ...


@dataclass(frozen=True, slots=True)
class BridgedProblem:
    """Holds the outcome for a problem: `reason` is KEPT_REASON (so far), or says why there is no row.

    `thoughts` are repaired; `repairs` counts the replacements, and `detail` is the text that caused a refusal.
    """

    problem: Problem
    reason: str
    description: str = ""
    thoughts: str = ""
    answer: str = ""
    repairs: int = 0
    detail: str = ""

    @property
    def solution(self) -> str:
        """Return the response to train on, in the form of the prompt preset `think`."""
        return f"<think>\n{self.thoughts}\n</think>\n<answer>{self.answer}</answer>"


@dataclass(frozen=True, slots=True)
class Bridge:
    """Runs the pipeline for individual problems."""

    seer: Asks
    reasoner: Asks
    grader: Grader
    wording: Wording
    config: BridgeConfig

    async def run(self, found: BridgedProblem) -> BridgedProblem:
        """Describe the image, solve the problem, and return the outcome; see `describe`."""
        return await self.solve(await self.describe(found))

    async def describe(self, found: BridgedProblem) -> BridgedProblem:
        """Add the description of the image, or the reason why there is none; an outcome with a reason is returned
        unchanged.

        Raises EngineStoppedError if the engines or servers are unavailable.
        """
        return await _unless_it_fails(self._described, found)

    async def solve(self, found: BridgedProblem) -> BridgedProblem:
        """Add the solution to a described problem, or the reason why there is none; see `describe`."""
        return await _unless_it_fails(self._solved, found)

    async def _described(self, found: BridgedProblem) -> BridgedProblem:
        problem, seed = found.problem, self.config.seed
        notes = await self.seer.ask(explain_request(problem), seed)
        if reason := _unusable(notes):
            return replace(found, reason=f"explanation {reason}")
        described = await self.seer.ask(describe_request(problem, notes.text), seed)
        if reason := _unusable(described):
            return replace(found, reason=f"description {reason}")
        leaked = leaks(described.text, problem.answer, problem.choices)
        reason = "description leaks the answer" if leaked else KEPT_REASON
        return replace(found, reason=reason, description=described.text)

    async def _solved(self, described: BridgedProblem) -> BridgedProblem:
        asked = solve_request(described.problem, described.description)
        for attempt in range(self.config.attempts):
            found = await self._checked(described, await self.reasoner.ask(asked, self.config.seed + attempt))
            if found.reason == KEPT_REASON:
                break
        return found

    async def _checked(self, described: BridgedProblem, said: Said) -> BridgedProblem:
        """Repair and check a solution, and return its outcome."""
        problem = described.problem
        if said.cut:
            return replace(described, reason="solution cut off")
        if not said.thoughts:
            return replace(described, reason="no thoughts", detail=said.text)
        grading = await self.grader.grade(problem, said.text)
        thoughts, repairs = self.wording.repaired(said.thoughts)
        found = replace(described, thoughts=thoughts, answer=grading.extracted or "", repairs=repairs)
        if grading.verdict is not Verdict.CORRECT:
            reason = "incorrect answer" if grading.verdict is Verdict.INCORRECT else "unknown verdict"
            return replace(found, reason=reason, detail=grading.reason)
        reason, detail = self._fault(thoughts, found.answer)
        if reason != KEPT_REASON:
            return replace(found, reason=reason, detail=detail)
        # The row is graded as it will be trained on: thoughts and answer in one text.
        whole = await self.grader.grade(problem, found.solution)
        return found if whole.verdict is Verdict.CORRECT else replace(found, reason="incorrect as a row")

    def _fault(self, thoughts: str, answer: str) -> tuple[str, str]:
        """Return the reason for refusing a solution and the offending text, or (KEPT_REASON, "") if all checks pass."""
        words = len(_WORD.findall(thoughts))
        if words < self.config.min_words:
            return "thoughts too short", f"{words} words"
        if words > self.config.max_words:
            return "thoughts too long", f"{words} words"
        tag = next((tag for tag in _TAGS if tag in (thoughts + answer).lower()), None)
        if tag is not None or count_marks(thoughts + answer):
            return "tags in the solution", tag or "an image mark"
        try:
            check_text(thoughts + answer, "solution", "reply")
        except DataError as error:
            return "special tokens in the solution", str(error)
        betrayal = self.wording.betrayal(thoughts)
        return (KEPT_REASON, "") if betrayal is None else ("betrays a text", betrayal)


_WORD = re.compile(r"[\u3040-\u9fff]|[^\s\u3040-\u9fff]+")
"""Matches a word, or one character of a script that is written without spaces."""

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


async def bridge_problems(
    problems: Sequence[Problem],
    bridge: Bridge,
    done: Callable[[BridgedProblem], None] = lambda found: None,
    between: Callable[[], Awaitable[None]] | None = None,
) -> list[BridgedProblem]:
    """Run the pipeline for all problems, in any order, and return the outcomes in file order. `done` is called with
    each outcome as soon as it is known.

    With `between`, all problems are described before the first one is solved, and `between` is awaited after the last
    description; `done` is then called after both. Problems without images, problems with videos or audio, and
    near-duplicates of earlier problems are not sent to the models. Raises EngineStoppedError if the engines or servers
    are unavailable.
    """
    refused = await asyncio.to_thread(_refused, problems)
    outcomes = [refused.get(index, BridgedProblem(problem, KEPT_REASON)) for index, problem in enumerate(problems)]
    if between is None:
        return await _each(outcomes, bridge.run, done)
    described = await _each(outcomes, bridge.describe, done)
    await between()
    return await _each(described, bridge.solve, done)


async def _each(
    outcomes: Sequence[BridgedProblem],
    stage: Callable[[BridgedProblem], Awaitable[BridgedProblem]],
    done: Callable[[BridgedProblem], None],
) -> list[BridgedProblem]:
    free = asyncio.Semaphore(PROBLEMS_IN_FLIGHT)

    async def one(before: BridgedProblem) -> BridgedProblem:
        async with free:
            found = await stage(before)
        done(found)
        return found

    tasks = [asyncio.ensure_future(one(each)) for each in outcomes]
    try:
        return list(await asyncio.gather(*tasks))
    finally:  # if the engines or servers are gone, the other problems must not ask on
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _unless_it_fails(
    stage: Callable[[BridgedProblem], Awaitable[BridgedProblem]], found: BridgedProblem
) -> BridgedProblem:
    """Run a stage for an outcome without a reason for refusal; a failed request or image becomes such a reason."""
    if found.reason != KEPT_REASON:
        return found
    try:
        return await stage(found)
    except EngineStoppedError:
        raise
    except SamplingError as error:
        return replace(found, reason=f"request failed: {_kind(error)}", detail=str(error))
    except DataError as error:
        return replace(found, reason="unreadable image", detail=str(error))


def _kind(error: SamplingError) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Failure):
        cause = cause.__cause__
    return type(error).__name__ if cause is None else cause.kind


def _refused(problems: Sequence[Problem]) -> dict[int, BridgedProblem]:
    """Return the outcomes of refused problems, by index: those that the seer cannot describe, and near-duplicates of
    earlier problems."""
    reasons = map(why_not_described, problems)
    found = {i: BridgedProblem(problems[i], reason) for i, reason in enumerate(reasons) if reason is not None}
    pictured = [index for index in range(len(problems)) if index not in found]
    # Problems with other options are other problems.
    asked = [replace(problem, question=asked_question(problem)) for problem in problems]
    try:
        twins = near_duplicates([asked[index] for index in pictured])
    except DataError:  # an unreadable image, which is refused later
        pictured = [index for index in pictured if _is_readable(problems[index])]
        twins = near_duplicates([asked[index] for index in pictured])
    for later, first in twins.items():
        problem, original = problems[pictured[later]], problems[pictured[first]]
        found[pictured[later]] = BridgedProblem(problem, "near-duplicate", detail=f"of {original.id}")
    return found


def why_not_described(problem: Problem) -> str | None:
    """Return why the seer cannot describe what a problem shows, or None if it can."""
    if problem.videos or problem.audios:
        return "video or audio"
    return None if problem.images else "no image"


def _is_readable(problem: Problem) -> bool:
    try:
        return all(open_image(image) for image in problem.images)
    except DataError:
        return False


def _unusable(said: Said) -> str:
    if said.cut:
        return "cut off"
    return "" if said.text else "empty"
