"""Sample, grade and score groups of candidates. A group consists of the solutions to one problem."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmprm import steps
from mmprm.errors import DataError, EngineStoppedError, MmprmError, UnknownScoresError
from mmprm.grading import choice
from mmprm.grading.numbers import number
from mmprm.grading.text import key
from mmprm.halving import score_each
from mmprm.sampling.seeds import derive_seed
from mmprm.scoring.aggregate import aggregator, vote_weight
from mmprm.selection.selectors import Choices
from mmprm.types import (
    Grader,
    Problem,
    Sampler,
    SampleRequest,
    Scorer,
    Solution,
    Steps,
    StepScores,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Holds one sampled solution with its answer, verdict and step scores.

    `steps` are plain. They are empty if the text could not be split; `unsplit` then holds the reason. Such a candidate
    has an answer and a verdict but no `scores`. A candidate whose steps could not be scored has no `scores` either, and
    `unscored` holds the reason. `unknown_scores` is true if the reason is that a thinking judge's verdicts could not be
    read. `score_tokens` is the number of tokens that such a judge generated, and None for a process reward model.
    """

    response: str
    steps: Steps
    answer: str | None
    verdict: Verdict
    token_count: int
    unsplit: str | None = None
    scores: StepScores | None = None
    unscored: str | None = None
    unknown_scores: bool = False
    score_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class CandidateGroup:
    """Holds all candidates of one problem in sampling order."""

    problem: Problem
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class SampledGroups:
    """Holds the sampled groups in problem order, and the failure reasons of the other problems by id."""

    groups: list[CandidateGroup]
    failed: dict[str, str] = field(default_factory=dict)


def answer_key(extracted: str | None, problem: Problem) -> str | None:
    """Normalize the extracted answer so that equivalent answers vote together.

    Options are normalized to their letter, numbers to their value, and other answers to the grader's text key.
    """
    if extracted is None:
        return None
    if problem.choices:
        index = choice.option(extracted, problem.choices)
        named = None if index is None else chr(ord("A") + index)
    else:
        named = choice.letter(extracted) if choice.is_letter(problem.answer) else None
    if named:
        return f"option {named}"
    text = key(extracted)
    value = number(text)
    return str(value) if value is not None else text or None


async def graded_candidate(
    problem: Problem, response: str, token_count: int, grader: Grader, step_format: steps.StepFormat
) -> Candidate:
    """Grade a response and split it into plain steps, without scoring them."""
    grading = await grader.grade(problem, response)
    split = steps.split(response, step_format)
    return Candidate(
        response=response,
        steps=tuple(steps.plain(step, step_format) for step in split.steps),
        answer=answer_key(grading.extracted, problem),
        verdict=grading.verdict,
        token_count=token_count,
        unsplit=split.reason,
    )


async def sample_groups(
    problems: Sequence[Problem],
    sampler: Sampler,
    grader: Grader,
    *,
    samples: int,
    step_format: steps.StepFormat,
    run_seed: int = 0,
    in_flight: int = 1024,
    keep: Callable[[CandidateGroup], None] = lambda group: None,
) -> SampledGroups:
    """Sample and grade `samples` solutions per problem, with at most `in_flight` concurrent samples.

    `keep` is called with each group as soon as it is complete. A problem whose sampling fails (missing image, overlong
    prompt) is left out and reported in `failed`. Raises EngineStoppedError if the engine stops.
    """
    slots = asyncio.Semaphore(max(1, in_flight // samples))

    async def group(problem: Problem) -> CandidateGroup | str:
        async with slots:
            request = SampleRequest(problem, "", samples, derive_seed(run_seed, problem.id, "", 0))
            try:
                completions = await sampler.sample(request)
            except EngineStoppedError:
                raise
            except MmprmError as error:
                return str(error)
        # Grading happens outside the semaphore, so that the engine can already sample the next problem.
        graded = (graded_candidate(problem, c.text, c.token_count, grader, step_format) for c in completions)
        found = CandidateGroup(problem, tuple(await asyncio.gather(*graded)))
        keep(found)
        return found

    results = dict(
        zip([p.id for p in problems], await asyncio.gather(*(group(problem) for problem in problems)), strict=True)
    )
    return SampledGroups(
        groups=[result for result in results.values() if isinstance(result, CandidateGroup)],
        failed={problem_id: result for problem_id, result in results.items() if isinstance(result, str)},
    )


def score_groups(groups: Sequence[CandidateGroup], scorer: Scorer) -> list[CandidateGroup]:
    """Add step scores to every candidate that has steps. Candidates with the same steps are scored once.

    A candidate that cannot be scored (too long, or the marker occurs in its text) gets the reason instead. Raises
    DataError if no candidate can be scored.
    """
    solutions = {
        (group.problem.id, candidate.steps): Solution(group.problem, candidate.steps)
        for group in groups
        for candidate in group.candidates
        if candidate.steps
    }
    answers = dict(zip(solutions, score_each(scorer, list(solutions.values())), strict=True))
    # If nothing can be scored, the cause is the model or a setting, not the solutions.
    if answers and all(isinstance(answer, DataError) for answer in answers.values()):
        raise next(iter(answers.values()))

    def scored(group: CandidateGroup) -> CandidateGroup:
        pairs = ((each, answers.get((group.problem.id, each.steps))) for each in group.candidates)
        return replace(group, candidates=tuple(with_answer(each, answer) for each, answer in pairs))

    return [scored(group) for group in groups]


def with_answer(candidate: Candidate, answer: StepScores | DataError | None) -> Candidate:
    """Return the candidate with the scorer's result: its step scores, or the reason why it cannot be scored."""
    if isinstance(answer, UnknownScoresError):
        return replace(candidate, unscored=str(answer), unknown_scores=True, score_tokens=answer.tokens)
    if isinstance(answer, DataError):
        return replace(candidate, unscored=str(answer))
    return replace(candidate, scores=answer, score_tokens=None if answer is None else answer.tokens)


def score_costs(groups: Iterable[CandidateGroup]) -> dict[str, int]:
    """Return the number of candidates with unknown scores, and the tokens of the judge, counting equal steps once.

    The result is empty if no thinking judge scored the candidates.
    """
    tokens: dict[tuple[str, Steps], int] = {}
    unknown = 0
    for group in groups:
        for candidate in group.candidates:
            unknown += candidate.unknown_scores
            if candidate.score_tokens is not None:
                tokens[group.problem.id, candidate.steps] = candidate.score_tokens
    return {"unknown_scores": unknown, "score_tokens": sum(tokens.values())} if tokens else {}


def rewards(group: CandidateGroup, aggregate: str | None) -> list[float]:
    """Aggregate each candidate's step scores into a reward, which is -inf if the candidate has no scores."""
    if aggregate is None:
        return [-math.inf] * len(group.candidates)
    function = aggregator(aggregate)
    return [function(c.scores.scores) if c.scores is not None else -math.inf for c in group.candidates]


def choices(groups: Sequence[CandidateGroup], aggregate: str | None) -> Choices:
    """Convert groups of equal size to the input arrays of the selectors; if `aggregate` is None, all rewards are
    -inf."""
    reward_PM = np.array([rewards(group, aggregate) for group in groups])

    def weight(reward: float) -> float:
        # A candidate that has no scores gets no weight in a weighted vote.
        return vote_weight(aggregate, reward) if aggregate and reward > -math.inf else 0.0

    answers = [_numbered(candidate.answer for candidate in group.candidates) for group in groups]
    correct = [[candidate.verdict is Verdict.CORRECT for candidate in group.candidates] for group in groups]
    weights = [[weight(reward) for reward in row] for row in reward_PM]
    return Choices(np.array(answers), np.array(correct), reward_PM, np.array(weights))


def _numbered(answers: Iterable[str | None]) -> list[int]:
    numbers: dict[str, int] = {}
    return [-1 if answer is None else numbers.setdefault(answer, len(numbers)) for answer in answers]


def common_size(groups: Iterable[CandidateGroup]) -> int:
    """Return the number of candidates per group; raise DataError if the groups differ in size."""
    sizes = {len(group.candidates) for group in groups}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(
            f"groups must have equal sizes, got sizes {sorted(sizes)}; give every problem the same number of samples"
        )
    return sizes.pop()
