"""Run a guided search on many problems concurrently; return their candidates and the number of generated tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mmprm.errors import DataError, EngineStoppedError, MmprmError, UnknownScoresError
from mmprm.scoring.aggregate import aggregator
from mmprm.scoring.http.queue import ScoreQueue
from mmprm.selection.groups import Candidate, CandidateGroup, graded_candidate, with_answer
from mmprm.selection.paths import Path, Writer
from mmprm.selection.strategies import STRATEGIES, GuidedConfig, ahead, solutions
from mmprm.steps import StepFormat
from mmprm.types import Grader, Problem, Sampler, Scorer, Solution, Steps, StepScores


@dataclass(frozen=True, slots=True)
class Guided:
    """Holds the graded and scored solutions that a search found for one problem.

    `tokens` and `samples` count everything that was generated, including discarded paths; a candidate's `token_count`
    covers only its own path. `score_tokens` counts what a thinking judge generated for all paths, and `unknown_scores`
    the paths about which its verdicts are unknown.
    """

    group: CandidateGroup
    tokens: int
    samples: int
    score_tokens: int = 0
    unknown_scores: int = 0


@dataclass(frozen=True, slots=True)
class Searched:
    """Holds the search results in problem order, and the failure reasons of the other problems by id."""

    results: list[Guided]
    failed: dict[str, str] = field(default_factory=dict)


async def search_problems(
    problems: Sequence[Problem],
    sampler: Sampler,
    grader: Grader,
    scorer: Scorer,
    config: GuidedConfig,
    *,
    aggregate: str,
    step_format: StepFormat,
    run_seed: int = 0,
    in_flight: int = 1024,
) -> Searched:
    """Run the guided search on each problem, with at most `in_flight` concurrent samples.

    Partial solutions are valued by the aggregate of their step scores. A problem is left out and reported in `failed`
    if its sampling fails or none of its solutions can be scored, except if a judge's verdicts are unknown. A partial
    solution that cannot be scored (too long, or the marker occurs in its text) is continued only if there are too few
    others. Raises EngineStoppedError if the engine stops.
    """
    value = aggregator(aggregate)
    queue = ScoreQueue(scorer)
    slots = asyncio.Semaphore(max(1, in_flight // config.samples))

    async def search(problem: Problem) -> Guided:
        writer = Writer(problem, sampler, step_format, run_seed)
        costs: dict[Steps, StepScores | DataError] = {}  # a judge is asked once about equal steps

        async def scored_paths(solutions: Sequence[Solution]) -> list[StepScores | DataError]:
            answers = await queue.score_apart(solutions)
            costs.update(zip((solution.steps for solution in solutions), answers, strict=True))
            return answers

        async def judge(paths: Sequence[Path]) -> list[float]:
            if config.lookahead:
                # A path is scored by its lookahead steps, but the search continues from the path itself.
                paths = await asyncio.gather(*(ahead(writer, path, config.lookahead) for path in paths))
            scored = await scored_paths([Solution(problem, writer.plain(path)) for path in paths])
            return [-math.inf if isinstance(entry, DataError) else value(entry.scores) for entry in scored]

        found = solutions(await STRATEGIES[config.strategy](writer, judge, config))
        graded = (graded_candidate(problem, path.text, path.token_count, grader, step_format) for path in found)
        candidates = await asyncio.gather(*graded)
        answers = await scored_paths([Solution(problem, each.steps) for each in candidates if each.steps])
        group = CandidateGroup(problem, scored_candidates(candidates, answers))
        tokens = sum(getattr(answer, "tokens", None) or 0 for answer in costs.values())
        unknown = sum(isinstance(answer, UnknownScoresError) for answer in costs.values())
        return Guided(group, writer.tokens, writer.samples, tokens, unknown)

    async def limited(problem: Problem) -> Guided:
        async with slots:
            return await search(problem)

    try:
        return await search_each(problems, limited)
    finally:
        queue.close()


async def search_each(problems: Sequence[Problem], search: Callable[[Problem], Awaitable[Guided]]) -> Searched:
    """Search all problems concurrently, and report those that fail. Raises EngineStoppedError if the engine stops."""

    async def attempt(problem: Problem) -> Guided | str:
        try:
            return await search(problem)
        except EngineStoppedError:
            raise
        except MmprmError as error:
            return str(error)

    results = await asyncio.gather(*map(attempt, problems))
    return Searched(
        results=[result for result in results if isinstance(result, Guided)],
        failed={
            problem.id: result for problem, result in zip(problems, results, strict=True) if isinstance(result, str)
        },
    )


def scored_candidates(
    candidates: Sequence[Candidate], answers: Sequence[StepScores | DataError]
) -> tuple[Candidate, ...]:
    """Return the candidates with the scorer's results for those that have steps, in order.

    Raises DataError if none of them could be scored, unless a thinking judge was asked and its verdicts are unknown.
    """
    reasons = [answer for answer in answers if isinstance(answer, DataError)]
    asked = any(isinstance(answer, UnknownScoresError) for answer in reasons)
    if reasons and len(reasons) == len(answers) and not asked:
        raise reasons[0]
    each = iter(answers)
    return tuple(with_answer(candidate, next(each)) if candidate.steps else candidate for candidate in candidates)
