"""Test step-by-step generation with a real engine, and guided search on top of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.selection.guided import search_problems
from mmprm.selection.paths import Path, PathState, Writer
from mmprm.selection.strategies import GuidedConfig
from mmprm.tiny.world import make_problems
from mmprm.types import Sampler, Solution, StepScores

pytestmark = pytest.mark.integration

PROBLEMS = [tiny.problem for tiny in make_problems(6, 0, "test")]


class ShortScorer:
    """Scores short steps higher."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(1 / (1 + len(step)) for step in solution.steps)) for solution in solutions]


async def test_a_step_ends_at_its_tag_and_greedy_samples_are_equal(sampler: Sampler) -> None:
    writer = Writer(PROBLEMS[0], sampler, "tags", 0)
    path, length = Path(), 0
    while path.state is PathState.OPEN and length < 12:
        (path,) = await writer.steps(path, 1, greedy=True)
        length += 1
    assert path.state is PathState.COMPLETE
    assert all(step.endswith("</step>") for step in path.steps[:-1])
    assert path.token_count == writer.tokens
    first, again = (
        await writer.steps(Path(), 1, first_sample=1, greedy=True),
        await writer.steps(Path(), 1, greedy=True),
    )
    assert first == again


@pytest.mark.parametrize("strategy", ["beam", "dvts"])
async def test_searches_on_one_engine(sampler: Sampler, strategy: str) -> None:
    config = GuidedConfig(strategy=strategy, samples=4, beams=2, lookahead=1, max_steps=12)
    with SymbolicGrader(GraderConfig()) as grader:
        searched = await search_problems(
            PROBLEMS, sampler, grader, ShortScorer(), config, aggregate="min", step_format="tags"
        )
    assert not searched.failed
    for result in searched.results:
        assert 1 <= len(result.group.candidates) <= 4
        assert result.tokens > sum(candidate.token_count for candidate in result.group.candidates) / 4
        assert all(candidate.scores is not None for candidate in result.group.candidates if candidate.steps)
