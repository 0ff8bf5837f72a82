"""Sample and grade a policy's responses to benchmark questions.

Responses are graded in up to three stages, which are scored separately: the benchmark's rule and the symbolic grader,
then an extractor for responses without an answer, then a judge for unknown verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmprm.errors import EngineStoppedError, MmprmError
from mmprm.evaluation.entries import Item
from mmprm.evaluation.extractor import FAILED, AnswerExtractor
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.evaluation.rules import grade_by_rule
from mmprm.sampling.seeds import derive_seed
from mmprm.types import Completion, Grader, Grading, Problem, Sampler, SampleRequest, Verdict

IN_FLIGHT = 1024
"""Maximum number of responses sampled concurrently."""


@dataclass(frozen=True, slots=True)
class GradedSample:
    """Holds a response and its gradings by stage: symbolic, extracted, judged.

    Each stage starts from the previous one: it changes only the gradings of the responses that it applies to.
    """

    completion: Completion
    gradings: Mapping[str, Grading]


@dataclass(frozen=True, slots=True)
class Answered:
    """Holds a question with its responses in sampling order; a question that could not be sampled has none."""

    item: Item
    samples: tuple[GradedSample, ...]


class ResponseStore(Protocol):
    """Protocol for storing responses as soon as they arrive, and for looking up earlier ones."""

    def get(self, problem: Problem) -> tuple[Completion, ...]: ...

    def add(self, problem: Problem, completions: Sequence[Completion]) -> None: ...


@dataclass(frozen=True, slots=True)
class Graders:
    """Holds the grader of each stage; a stage that is not configured is None."""

    symbolic: Grader
    extractor: AnswerExtractor | None = None
    judged: Grader | None = None

    async def gradings(self, item: Item, response: str) -> dict[str, Grading]:
        """Grade a response, and return the gradings by stage."""
        last = await self._by_rule(item, response)
        found = {"symbolic": last}
        if self.extractor is not None:
            last = found["extracted"] = await self._extracted(item, response, last)
        if self.judged is not None:
            if last.verdict is Verdict.UNKNOWN and last.extracted is not None:
                last = await grade_by_rule(item.problem, item.also, None, _as_answer(last.extracted), self.judged)
            found["judged"] = last
        return found

    async def _by_rule(self, item: Item, response: str) -> Grading:
        return await grade_by_rule(item.problem, item.also, item.rule, response, self.symbolic)

    async def _extracted(self, item: Item, response: str, before: Grading) -> Grading:
        """Grade the answer that the extractor finds if the grader found none; if the request fails, the verdict is
        UNKNOWN."""
        if before.extracted is not None or not response.strip():
            return before
        answer, reason = await self.extractor.find(item.problem, response)
        if answer is None:
            verdict = Verdict.UNKNOWN if reason.startswith(FAILED) else Verdict.INCORRECT
            return Grading(verdict, None, reason)
        return await self._by_rule(item, _as_answer(answer))


def _as_answer(text: str) -> str:
    return f"<answer>{text}</answer>"


async def ask(
    items: Sequence[Item],
    sampler: Sampler | None,
    graders: Graders,
    config: PolicyEvalConfig,
    known: ResponseStore,
) -> tuple[list[Answered], dict[str, str]]:
    """Sample and grade responses; return all questions, and a dict from id to failure reason for unanswered ones.

    Only missing responses are sampled; `sampler` may be None if `known` has all of them. Raises EngineStoppedError if
    the engine stops.
    """
    free = asyncio.Semaphore(max(1, IN_FLIGHT // config.samples))

    async def graded(item: Item, completion: Completion) -> GradedSample:
        return GradedSample(completion, await graders.gradings(item, completion.text))

    async def one(item: Item) -> Answered | str:
        problem = item.problem
        async with free:
            try:
                await _sample_missing(problem, sampler, config, known)
            except EngineStoppedError:
                raise
            except MmprmError as error:
                return str(error)
        completions = known.get(problem)[: config.samples]
        if len(completions) < config.samples:
            return "a response was aborted"
        return Answered(item, tuple(await asyncio.gather(*(graded(item, c) for c in completions))))

    results = await asyncio.gather(*map(one, items))
    pairs = list(zip(items, results, strict=True))
    failed = {item.problem.id: result for item, result in pairs if isinstance(result, str)}
    return [Answered(item, ()) if isinstance(result, str) else result for item, result in pairs], failed


async def _sample_missing(
    problem: Problem, sampler: Sampler | None, config: PolicyEvalConfig, known: ResponseStore
) -> None:
    there = len(known.get(problem))
    if there >= config.samples:
        return
    assert sampler is not None, "no sampler is needed only if every question has its responses"
    seed = derive_seed(config.seed, problem.id, "", there)
    known.add(problem, await sampler.sample(SampleRequest(problem, "", config.samples - there, seed)))
