"""Groups of candidates: the sampled, graded and scored solutions of each problem."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmprm import steps
from mmprm.errors import DataError, EngineStoppedError, MmprmError
from mmprm.grading import choice
from mmprm.grading.numbers import number
from mmprm.grading.text import key
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
    """One sampled solution. `steps` are plain, and empty where the text could not be split (`unsplit` says why);
    such a candidate keeps its answer and its verdict but has no `scores`, as one whose steps could not be scored
    (`unscored` says why)."""

    response: str
    steps: Steps
    answer: str | None
    verdict: Verdict
    token_count: int
    unsplit: str | None = None
    scores: StepScores | None = None
    unscored: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """All candidates of one problem, in draw order."""

    problem: Problem
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What sampling gave: groups in the order of the problems, and the reason for each problem that failed."""

    groups: list[Group]
    failed: dict[str, str] = field(default_factory=dict)


def answer_key(extracted: str | None, problem: Problem) -> str | None:
    """The extracted answer, so normalised that the spellings of one answer vote together: options by letter, numbers
    by value, the rest as grading's text keys."""
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
    problem: Problem, response: str, token_count: int, grader: Grader, markup: steps.Markup
) -> Candidate:
    """The response with its verdict and its plain steps, not scored yet."""
    grading = await grader.grade(problem, response)
    split = steps.split(response, markup)
    return Candidate(
        response=response,
        steps=tuple(steps.plain(step, markup) for step in split.steps),
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
    markup: steps.Markup,
    run_seed: int = 0,
    in_flight: int = 1024,
    keep: Callable[[Group], None] = lambda group: None,
) -> Sampled:
    """Draw and grade `samples` solutions of each problem, at most `in_flight` of them at a time. `keep` gets each group
    as soon as it is there.

    A problem whose sampling fails (a missing picture, a prompt that is too long) is reported in `failed` and left out;
    an engine that has stopped fails the whole.
    """
    room = asyncio.Semaphore(max(1, in_flight // samples))

    async def group(problem: Problem) -> Group | str:
        async with room:
            request = SampleRequest(problem, "", samples, derive_seed(run_seed, problem.id, "", 0))
            try:
                completions = await sampler.sample(request)
            except EngineStoppedError:
                raise
            except MmprmError as error:
                return str(error)
        graded = (graded_candidate(problem, c.text, c.token_count, grader, markup) for c in completions)
        found = Group(problem, tuple(await asyncio.gather(*graded)))
        keep(found)
        return found

    results = dict(
        zip([p.id for p in problems], await asyncio.gather(*(group(problem) for problem in problems)), strict=True)
    )
    return Sampled(
        groups=[result for result in results.values() if isinstance(result, Group)],
        failed={problem_id: result for problem_id, result in results.items() if isinstance(result, str)},
    )


def score_groups(groups: Sequence[Group], scorer: Scorer) -> list[Group]:
    """The same groups with step scores for every candidate that has steps; equal solutions are scored once.

    One that cannot be scored (too long, the marker in its text) gets the reason instead; DataError where all are so.
    """
    solutions = {
        (group.problem.id, candidate.steps): Solution(group.problem, candidate.steps)
        for group in groups
        for candidate in group.candidates
        if candidate.steps
    }
    answers = dict(zip(solutions, _scored_apart(list(solutions.values()), scorer), strict=True))
    if answers and all(isinstance(answer, DataError) for answer in answers.values()):
        raise next(iter(answers.values()))

    def scored(group: Group) -> Group:
        pairs = ((each, answers.get((group.problem.id, each.steps))) for each in group.candidates)
        return replace(group, candidates=tuple(with_answer(each, answer) for each, answer in pairs))

    return [scored(group) for group in groups]


def with_answer(candidate: Candidate, answer: StepScores | DataError | None) -> Candidate:
    """The candidate with its scores, or with the reason why it has none."""
    if isinstance(answer, DataError):
        return replace(candidate, unscored=str(answer))
    return replace(candidate, scores=answer)


def _scored_apart(solutions: list[Solution], scorer: Scorer) -> list[StepScores | DataError]:
    """Halves of what fails are scored again, so that only a solution at fault has no scores."""
    try:
        return list(scorer.score(solutions))
    except DataError as error:
        if len(solutions) == 1:
            return [error]
        middle = len(solutions) // 2
        return [*_scored_apart(solutions[:middle], scorer), *_scored_apart(solutions[middle:], scorer)]


def rewards(group: Group, aggregate: str) -> list[float]:
    """The aggregate of each candidate's step scores; -inf where it has none."""
    function = aggregator(aggregate)
    return [function(c.scores.scores) if c.scores is not None else -math.inf for c in group.candidates]


def choices(groups: Sequence[Group], aggregate: str) -> Choices:
    """Groups of one size as the selectors see them."""
    reward_PM = np.array([rewards(group, aggregate) for group in groups])
    weight_PM = [[vote_weight(aggregate, reward) if reward > -math.inf else 0.0 for reward in row] for row in reward_PM]
    return Choices(
        answer_PM=np.array([_numbered(candidate.answer for candidate in group.candidates) for group in groups]),
        correct_PM=np.array([[c.verdict is Verdict.CORRECT for c in group.candidates] for group in groups]),
        reward_PM=reward_PM,
        weight_PM=np.array(weight_PM),
    )


def _numbered(answers: Iterable[str | None]) -> list[int]:
    numbers: dict[str, int] = {}
    return [-1 if answer is None else numbers.setdefault(answer, len(numbers)) for answer in answers]


def common_size(groups: Iterable[Group]) -> int:
    """The number of candidates that every group has."""
    sizes = {len(group.candidates) for group in groups}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(f"selection compares groups of one size, got sizes {sorted(sizes)}; sample each problem alike")
    return sizes.pop()
