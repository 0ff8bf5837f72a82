from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest

from mmprm.config import build
from mmprm.errors import ConfigError, DataError, EngineStoppedError, SamplingError
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.selection.accuracy import accuracy
from mmprm.selection.guided import Guided, Searched, search_problems
from mmprm.selection.strategies import GuidedConfig, even_shares
from mmprm.steps import StepFormat
from mmprm.types import Completion, Problem, SampleRequest, Solution, StepScores, Verdict
from tests.mmprm.guided_world import PROBLEM, DigitSampler, LetterScorer, OnesScorer, TagGrader, world


async def search(
    config: GuidedConfig,
    sampler: object | None = None,
    scorer: object | None = None,
    problems: Sequence[Problem] = (PROBLEM,),
    aggregate: str = "min",
    step_format: StepFormat = "tags",
    **options: int,
) -> Searched:
    return await search_problems(
        problems,
        sampler or DigitSampler(),
        TagGrader(),
        scorer or OnesScorer(),
        config,
        aggregate=aggregate,
        step_format=step_format,
        **options,
    )


async def one(config: GuidedConfig, *arguments: object, **options: object) -> Guided:
    searched = await search(config, *arguments, **options)
    assert not searched.failed
    (result,) = searched.results
    return result


def answers(result: Guided) -> list[str | None]:
    return [candidate.answer for candidate in result.group.candidates]


async def test_beam_search_beats_best_of_n_at_equal_tokens() -> None:
    # By depth: 0 1 2 0 1 2 | from 1 and 0: 10 11 12, 00 01 02 | from 11 and 10: 110 111 112, 100 101 102 | answers.
    best = await one(GuidedConfig(samples=6))
    assert answers(best) == ["0", "100", "200", "0", "100", "200"]
    scorer = OnesScorer()
    beam = await one(GuidedConfig(strategy="beam", samples=6, beams=2), DigitSampler(), scorer)
    assert answers(beam) == ["111", "111", "111", "110", "110", "110"]
    assert beam.group.candidates[0].steps == ("1", "1", "1", "<answer>111</answer>")
    assert beam.group.candidates[0].scores == StepScores((0.9, 0.9, 0.9, 0.9))
    assert (beam.tokens, best.tokens) == (24, 24)
    assert (beam.samples, best.samples) == (24, 6)
    assert [c.token_count for c in beam.group.candidates] == [4] * 6
    assert accuracy([best.group], "min")["prm"].value == 0.0
    assert accuracy([beam.group], "min")["prm"].value == 1.0
    # Six samples give three distinct steps, each scored once. At the end, two distinct solutions are scored.
    assert [len(steps) for steps in scorer.asked] == [1] * 3 + [2] * 6 + [3] * 6 + [4] * 2
    assert scorer.asked[:3] == [("0",), ("1",), ("2",)]


async def test_a_sampler_without_stops_finds_the_same() -> None:
    config = GuidedConfig(strategy="beam", samples=6, beams=2)
    stopped, whole = await one(config), await one(config, DigitSampler(stops=False))
    assert answers(stopped) == answers(whole)
    assert whole.tokens == 6 * (4 + 3 + 2 + 1)


async def test_complete_solutions_occupy_beams() -> None:
    asked: list[tuple[str, int]] = []

    class Sampler:
        """Ends the solution in the second sample of every request."""

        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            asked.append((request.prefix, request.n))
            steps = [f"<step>{len(request.prefix)}.{i}</step>" for i in range(request.n)]
            texts = [f"<answer>{i}</answer>" if i == 1 else step for i, step in enumerate(steps)]
            return tuple(Completion(text, 1, "stop") for text in texts)

    class FirstScorer:
        """Scores earlier samples higher."""

        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            return [StepScores(tuple(0.5 if "<" in s else 1 - int(s[-1]) / 10 for s in x.steps)) for x in solutions]

    result = await one(GuidedConfig(strategy="beam", samples=4, beams=2, max_steps=3), Sampler(), FirstScorer())
    # 4 samples, one complete; 3 slots for two paths: 2 and 1 samples, one complete; 2 slots for two paths.
    assert asked[0] == ("", 4)
    assert asked[1:3] == [("<step>0.0</step>", 2), ("<step>0.2</step>", 1)]
    assert [n for _, n in asked[3:]] == [1, 1]
    assert answers(result) == ["1", "1"]
    assert result.tokens == 9


async def test_dvts_trees_stay_independent() -> None:
    sampler = ScriptedSampler(world)
    forest = await one(GuidedConfig(strategy="dvts", samples=8, beams=4), sampler, LetterScorer())
    roots = [request for request in sampler.requests if not request.prefix]
    assert [request.n for request in roots] == [2, 2, 2, 2]
    assert len({request.seed for request in roots}) == 4
    # A tree alone is a beam search with its slots and one beam, so the first tree samples the same.
    alone = await one(GuidedConfig(strategy="beam", samples=2, beams=1), ScriptedSampler(world), LetterScorer())
    assert forest.group.candidates[:2] == alone.group.candidates
    # Each tree continues from the better of its two first letters, and never from another tree's.
    beginnings = [candidate.steps[0] for candidate in forest.group.candidates]
    assert beginnings[::2] == beginnings[1::2]
    sampled = [
        [text[6] for text in (world(PROBLEM, "", random.Random(root.seed + i)) for i in range(2))] for root in roots
    ]
    assert beginnings[::2] == [max(pair) for pair in sampled]
    assert len(set(beginnings)) > 1
    assert forest.tokens == forest.samples == 8 * 4


async def test_lookahead_sees_past_a_promising_step() -> None:
    ends = {"trap": "wrong", "plain": "right"}

    class Sampler:
        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            assert request.n == 1 or not request.greedy
            written = re.findall(r"<step>(\w+)", request.prefix)
            first = ["trap", "plain"]
            steps = [first[i % 2] if not written else ends[written[0]] for i in range(request.n)]
            texts = [f"<answer>{written[1]}</answer>" if len(written) == 2 else f"<step>{s}</step>" for s in steps]
            return tuple(Completion(text, 10, "stop") for text in texts)

    class Scorer:
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            table = {"trap": 0.9, "plain": 0.6, "wrong": 0.1, "right": 0.8}
            return [StepScores(tuple(table.get(step, 0.5) for step in s.steps)) for s in solutions]

    problem = Problem("p", "q", "right")
    for k, found, tokens in [(0, "wrong", 2 * 30), (1, "right", 2 * 30 + 20), (2, "right", 2 * 30 + 40)]:
        config = GuidedConfig(strategy="beam", samples=2, beams=1, lookahead=k)
        result = await one(config, Sampler(), Scorer(), [problem])
        # Two samples at each of three depths, plus k lookahead steps for the two paths of the only decision.
        assert (answers(result), result.tokens) == ([found, found], tokens)


@pytest.mark.parametrize("strategy", ["best_of_n", "beam", "dvts"])
async def test_results_depend_only_on_the_seed(strategy: str) -> None:
    problems = [Problem(str(i), "q", "abc") for i in range(12)]
    config = GuidedConfig(strategy=strategy, samples=6, beams=3)

    async def run(seed: int, in_flight: int) -> list[Guided]:
        sampler = ScriptedSampler(world, delay=0.001)
        searched = await search(config, sampler, LetterScorer(), problems, run_seed=seed, in_flight=in_flight)
        assert (sampler.in_flight_max > 6) == (in_flight > 6)
        return searched.results

    first = await run(0, 72)
    assert first == await run(0, 6)
    assert first != await run(1, 72)
    assert [result.group.problem.id for result in first] == [problem.id for problem in problems]


async def test_a_problem_without_any_step_keeps_its_text() -> None:
    sampler = ScriptedSampler(lambda problem, prefix, rng: "I cannot say")
    result = await one(GuidedConfig(strategy="beam", samples=3, beams=1), sampler)
    assert [(c.response, c.steps, c.unsplit, c.scores) for c in result.group.candidates] == [
        ("I cannot say", (), "no step", None)
    ] * 3
    assert (result.tokens, len(sampler.requests)) == (9, 1)
    assert accuracy([result.group], "min")["prm"].value == 0.0


async def test_the_deepest_steps_are_the_end() -> None:
    sampler = ScriptedSampler(lambda problem, prefix, rng: f"<step>{rng.random()}</step>")

    class HalfScorer:
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            return [StepScores((0.5,) * len(solution.steps)) for solution in solutions]

    result = await one(GuidedConfig(strategy="beam", samples=6, beams=2, max_steps=3), sampler, HalfScorer())
    assert [len(candidate.steps) for candidate in result.group.candidates] == [3, 3]
    assert [candidate.verdict for candidate in result.group.candidates] == [Verdict.INCORRECT] * 2
    assert result.tokens == 18


async def test_one_problem_fails_and_the_others_continue() -> None:
    class Sampler(DigitSampler):
        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            if request.problem.id == "no image":
                raise SamplingError("x.png is missing")
            return await super().sample(request)

    class Scorer(OnesScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            if any(solution.problem.id == "too long" for solution in solutions):
                raise DataError("reads at most 8 tokens")
            return super().score(solutions)

    problems = [Problem(name, "q", "111") for name in ("a", "no image", "too long", "b")]
    searched = await search(GuidedConfig(strategy="beam", samples=6, beams=2), Sampler(), Scorer(), problems)
    assert [result.group.problem.id for result in searched.results] == ["a", "b"]
    assert searched.failed == {"no image": "x.png is missing", "too long": "reads at most 8 tokens"}


async def test_a_path_that_cannot_be_scored_is_not_chosen() -> None:
    class Scorer(OnesScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            if any(solution.steps[:2] == ("1", "1") for solution in solutions):
                raise DataError("holds the marker")
            return super().score(solutions)

    beam = await one(GuidedConfig(strategy="beam", samples=6, beams=2), DigitSampler(), Scorer())
    assert answers(beam) == ["100", "100", "100", "101", "101", "101"]


async def test_a_stopped_engine_fails_the_whole() -> None:
    class Sampler:
        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            raise EngineStoppedError("gone")

    with pytest.raises(EngineStoppedError, match="gone"):
        await search(GuidedConfig(strategy="beam"), Sampler())


def test_shares() -> None:
    assert even_shares(8, 3) == [3, 3, 2]
    assert even_shares(2, 3) == [1, 1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "beam", "samples": 2, "beams": 4}, "beams=4 must be at most samples=2"),
        ({"lookahead": 2}, "lookahead=2 needs strategy beam or dvts"),
    ],
)
def test_settings_must_fit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(GuidedConfig, values)
