from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path as FilePath

import pytest

from mmprm.cli import search as command
from mmprm.cli.main import main
from mmprm.config import build
from mmprm.errors import ConfigError, DataError, EngineStoppedError, SamplingError
from mmprm.prm.info import PrmInfo
from mmprm.sampling.config import EngineConfig, SamplingConfig, ServersConfig
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.sampling.server_sampler import ServerSampler
from mmprm.selection.accuracy import accuracy, at_equal_tokens
from mmprm.selection.groups import Candidate, Group
from mmprm.selection.guided import Guided, Searched, search_problems
from mmprm.selection.paths import STOPS, Path, State, Writer, extended
from mmprm.selection.score_queue import ScoreQueue
from mmprm.selection.strategies import GuidedConfig, shares
from mmprm.steps import Markup
from mmprm.types import Completion, Grading, Problem, SampleRequest, Solution, StepScores, Verdict

PROBLEM = Problem("p", "q", "111")


class DigitSampler:
    """Draw i from any prefix begins with the digit i % 3, and all its later digits are 0; the answer are the digits.

    A token a step, the answer included. Ignores `stop` where `stops` is False.
    """

    def __init__(self, stops: bool = True) -> None:
        self._stops = stops
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        return tuple(self._write(request, draw % 3) for draw in range(request.n))

    def _write(self, request: SampleRequest, digit: int) -> Completion:
        digits = re.findall(r"<step>(\d)", request.prefix)
        written = len(digits)
        digits += [str(digit), "0", "0"][: 3 - written]
        parts = [f"<step>{d}</step>" for d in digits[written:]] + [f"<answer>{''.join(digits)}</answer>"]
        if request.stop and self._stops:
            parts = parts[:1]
        return Completion("".join(parts), len(parts), "stop")


class OnesScorer:
    """A step is right when it is 1, or the answer 111."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        self.asked += [solution.steps for solution in solutions]
        right = ("1", "<answer>111</answer>")
        return [StepScores(tuple(0.9 if step in right else 0.1 for step in s.steps)) for s in solutions]


class TagGrader:
    async def grade(self, problem: Problem, response: str) -> Grading:
        found = re.search(r"<answer>(.*)</answer>", response)
        answer = found[1] if found else None
        return Grading(Verdict(answer == problem.answer), answer, "")


async def search(
    config: GuidedConfig,
    sampler: object | None = None,
    scorer: object | None = None,
    problems: Sequence[Problem] = (PROBLEM,),
    aggregate: str = "min",
    markup: Markup = "tags",
    **options: int,
) -> Searched:
    return await search_problems(
        problems,
        sampler or DigitSampler(),
        TagGrader(),
        scorer or OnesScorer(),
        config,
        aggregate=aggregate,
        markup=markup,
        **options,
    )


async def one(config: GuidedConfig, *arguments: object, **options: object) -> Guided:
    searched = await search(config, *arguments, **options)
    assert not searched.failed
    (result,) = searched.results
    return result


def answers(result: Guided) -> list[str | None]:
    return [candidate.answer for candidate in result.group.candidates]


async def test_beam_finds_what_best_of_n_misses_at_the_same_tokens() -> None:
    # By steps: 0 1 2 0 1 2 | from 1 and 0: 10 11 12, 00 01 02 | from 11 and 10: 110 111 112, 100 101 102 | answers.
    best = await one(GuidedConfig(samples=6))
    assert answers(best) == ["0", "100", "200", "0", "100", "200"]
    scorer = OnesScorer()
    beam = await one(GuidedConfig(strategy="beam", samples=6, beams=2), DigitSampler(), scorer)
    assert answers(beam) == ["111", "111", "111", "110", "110", "110"]
    assert beam.group.candidates[0].steps == ("1", "1", "1", "<answer>111</answer>")
    assert beam.group.candidates[0].scores == StepScores((0.9, 0.9, 0.9, 0.9))
    assert (beam.tokens, best.tokens) == (24, 24)
    assert (beam.draws, best.draws) == (24, 6)
    assert [c.token_count for c in beam.group.candidates] == [4] * 6
    assert accuracy([best.group], "min")["prm"].value == 0.0
    assert accuracy([beam.group], "min")["prm"].value == 1.0
    # Six draws are three steps; equal ones are judged once. At the end two different solutions are scored.
    assert [len(steps) for steps in scorer.asked] == [1] * 3 + [2] * 6 + [3] * 6 + [4] * 2
    assert scorer.asked[:3] == [("0",), ("1",), ("2",)]


async def test_a_sampler_without_stops_finds_the_same_and_its_tokens_are_all_counted() -> None:
    config = GuidedConfig(strategy="beam", samples=6, beams=2)
    stopped, whole = await one(config), await one(config, DigitSampler(stops=False))
    assert answers(stopped) == answers(whole)
    assert whole.tokens == 6 * (4 + 3 + 2 + 1)


async def test_complete_solutions_take_up_places() -> None:
    asked: list[tuple[str, int]] = []

    class Sampler:
        """The second draw of every request ends the solution."""

        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            asked.append((request.prefix, request.n))
            steps = [f"<step>{len(request.prefix)}.{i}</step>" for i in range(request.n)]
            texts = [f"<answer>{i}</answer>" if i == 1 else step for i, step in enumerate(steps)]
            return tuple(Completion(text, 1, "stop") for text in texts)

    class FirstScorer:
        """The earlier draw is the better one."""

        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            return [StepScores(tuple(0.5 if "<" in s else 1 - int(s[-1]) / 10 for s in x.steps)) for x in solutions]

    result = await one(GuidedConfig(strategy="beam", samples=4, beams=2, max_steps=3), Sampler(), FirstScorer())
    # 4 draws, one complete; 3 places for two paths, 2 and 1 draws, one complete; 2 places for two paths.
    assert asked[0] == ("", 4)
    assert asked[1:3] == [("<step>0.0</step>", 2), ("<step>0.2</step>", 1)]
    assert [n for _, n in asked[3:]] == [1, 1]
    assert answers(result) == ["1", "1"]
    assert result.tokens == 9


def world(problem: Problem, prefix: str, rng: random.Random) -> str:
    """Three random letters a to h, one a step, then they are the answer."""
    letters = re.findall(r"<step>(\w)", prefix)
    written = len(letters)
    letters += rng.choices("abcdefgh", k=3 - written)
    return "".join(f"<step>{c}</step>" for c in letters[written:]) + f"<answer>{''.join(letters)}</answer>"


class LetterScorer:
    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(0.5 if "<" in s else (ord(s) - 96) / 10 for s in x.steps)) for x in solutions]


async def test_dvts_trees_stay_apart() -> None:
    sampler = ScriptedSampler(world)
    forest = await one(GuidedConfig(strategy="dvts", samples=8, beams=4), sampler, LetterScorer())
    roots = [request for request in sampler.requests if not request.prefix]
    assert [request.n for request in roots] == [2, 2, 2, 2]
    assert len({request.seed for request in roots}) == 4
    # A tree alone is a beam search with its places and one beam; the first tree draws as that does.
    alone = await one(GuidedConfig(strategy="beam", samples=2, beams=1), ScriptedSampler(world), LetterScorer())
    assert forest.group.candidates[:2] == alone.group.candidates
    # Each tree went on from the better of its two first letters, and no tree with another's.
    beginnings = [candidate.steps[0] for candidate in forest.group.candidates]
    assert beginnings[::2] == beginnings[1::2]
    drawn = [
        [text[6] for text in (world(PROBLEM, "", random.Random(root.seed + i)) for i in range(2))] for root in roots
    ]
    assert beginnings[::2] == [max(pair) for pair in drawn]
    assert len(set(beginnings)) > 1
    assert forest.tokens == forest.draws == 8 * 4


async def test_lookahead_sees_behind_a_promising_step() -> None:
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
        # Two draws at each of three depths, and k steps ahead of the two paths of the only choice.
        assert (answers(result), result.tokens) == ([found, found], tokens)


@pytest.mark.parametrize("strategy", ["best_of_n", "beam", "dvts"])
async def test_the_seed_decides_whatever_else_is_in_flight(strategy: str) -> None:
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


async def test_a_problem_without_any_step_keeps_what_was_written() -> None:
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


async def test_one_problem_fails_and_the_others_go_on() -> None:
    class Sampler(DigitSampler):
        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            if request.problem.id == "no picture":
                raise SamplingError("x.png is missing")
            return await super().sample(request)

    class Scorer(OnesScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            if any(solution.problem.id == "too long" for solution in solutions):
                raise DataError("reads at most 8 tokens")
            return super().score(solutions)

    problems = [Problem(name, "q", "111") for name in ("a", "no picture", "too long", "b")]
    searched = await search(GuidedConfig(strategy="beam", samples=6, beams=2), Sampler(), Scorer(), problems)
    assert [result.group.problem.id for result in searched.results] == ["a", "b"]
    assert searched.failed == {"no picture": "x.png is missing", "too long": "reads at most 8 tokens"}


async def test_a_stopped_engine_fails_the_whole() -> None:
    class Sampler:
        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            raise EngineStoppedError("gone")

    with pytest.raises(EngineStoppedError, match="gone"):
        await search(GuidedConfig(strategy="beam"), Sampler())


PART = Path(("<step>a</step>",), 5)


@pytest.mark.parametrize(
    ("markup", "text", "finish", "expected"),
    [
        ("tags", "<step>b</step>", "stop", Path((*PART.steps, "<step>b</step>"), 7)),
        ("tags", "<step>b</step><answer>1</answer>", "stop", Path((*PART.steps, "<step>b</step>"), 7)),
        ("tags", "<answer>1</answer>", "stop", Path((*PART.steps, "<answer>1</answer>"), 7, State.COMPLETE)),
        ("tags", "", "stop", Path(PART.steps, 7, State.COMPLETE)),
        ("tags", "", "length", Path(PART.steps, 7, State.BROKEN)),
        ("tags", "<step>b", "length", Path(PART.steps, 7, State.BROKEN, "<step>b")),
        ("tags", "<answer>1</answer>", "length", Path(PART.steps, 7, State.BROKEN, "<answer>1</answer>")),
        ("blank_lines", "b\n\n", "stop", Path((*PART.steps, "b\n\n"), 7)),
        ("blank_lines", "So 1.", "stop", Path((*PART.steps, "So 1."), 7, State.COMPLETE)),
        ("blank_lines", "So 1", "length", Path(PART.steps, 7, State.BROKEN, "So 1")),
        ("numbered", "Step 2: b\nStep 3: c", "length", Path((*PART.steps, "Step 2: b\n"), 7)),
        ("numbered", "Step 2: b", "stop", Path((*PART.steps, "Step 2: b"), 7, State.COMPLETE)),
    ],
)
def test_where_a_step_ends(markup: Markup, text: str, finish: str, expected: Path) -> None:
    assert extended(PART, Completion(text, 2, finish), STOPS[markup](2), markup) == expected


async def test_stops_know_the_number_of_the_step() -> None:
    sampler = ScriptedSampler(lambda problem, prefix, rng: "<step_2>b</step_2><answer>1</answer>")
    (path,) = await Writer(PROBLEM, sampler, "tags", 0).steps(Path(("<step_1>a</step_1>",), 1), 1)
    assert path == Path(("<step_1>a</step_1>", "<step_2>b</step_2>"), 2)


async def test_what_is_asked_while_the_scorer_works_is_scored_together() -> None:
    busy = threading.Event()

    class SlowScorer(OnesScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            assert busy.wait(10)
            return super().score(solutions)

    scorer = SlowScorer()
    queue = ScoreQueue(scorer)
    calls = [asyncio.create_task(queue.score([Solution(PROBLEM, ("1",))]))]
    await asyncio.sleep(0.01)
    calls += [
        asyncio.create_task(queue.score([Solution(PROBLEM, (step,)), Solution(PROBLEM, ("1",))])) for step in "2134"
    ]
    await asyncio.sleep(0.01)
    busy.set()
    results = await asyncio.gather(*calls)
    queue.close()
    assert (queue.batches, queue.scored) == (2, 5)
    assert scorer.asked == [("1",), ("2",), ("1",), ("3",), ("4",)]
    assert [[entry.scores[0] for entry in result] for result in results] == [
        [0.9], [0.1, 0.9], [0.9, 0.9], [0.1, 0.9], [0.1, 0.9]
    ]  # fmt: skip


async def test_equal_tokens_by_hand() -> None:
    def group(name: str, *rewards: float, right: int = 1) -> Group:
        candidates = (
            Candidate("", ("s",), str(i), Verdict(i == right), 10, scores=StepScores((reward,)))
            for i, reward in enumerate(rewards)
        )
        return Group(Problem(name, "q", "1"), tuple(candidates))

    # Best-of-N picks the right candidate in every subset that holds it: 1/4, 2/4, 3/4, 1 for N = 1 to 4 in a,
    # never in b. 50 tokens for two problems are 25 each: two samples and a half, (2/4 + 3/4) / 2 in a, half over both.
    samples = [group("a", 0.1, 0.9, 0.1, 0.1), group("b", 0.9, 0.1, 0.1, 0.1, right=9)]
    guided = [group("a", 0.5, 0.9), group("b", 0.5, 0.9, 0.1)]
    equal = at_equal_tokens(guided, 50, samples, "min")
    assert (equal.n, equal.tokens) == (2.5, 25.0)
    assert equal.accuracy["prm"].value == pytest.approx(0.3125)
    assert equal.accuracy["random"].value == pytest.approx(0.125)
    assert equal.difference["prm"].value == pytest.approx(1.0 - 0.3125)
    assert equal.difference["random"].value == pytest.approx((1 / 2 + 1 / 3) / 2 - 0.125)
    few = at_equal_tokens(guided, 500, samples, "min")  # more than were sampled: all of them, and their tokens
    assert (few.n, few.tokens, few.accuracy["prm"].value) == (4.0, 40.0, 0.5)


async def test_the_command_writes_solutions_and_compares(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.asynccontextmanager
    async def opened(thing: object) -> AsyncIterator[object]:
        yield thing

    class Scorer(OnesScorer):
        def close(self) -> None:
            pass

    monkeypatch.setattr(command, "read_info", lambda path: PrmInfo(aggregator="min"))
    monkeypatch.setattr(command, "open_scorer", lambda config: Scorer())
    monkeypatch.setattr(command, "open_sampler", lambda *arguments: opened(DigitSampler()))
    monkeypatch.setattr(command, "open_grader", lambda config: opened(TagGrader()))
    (tmp_path / "problems.jsonl").write_text('{"id": "p", "question": "q", "answer": "111"}')
    sets = [f"problems.path={tmp_path}/problems.jsonl", "engine.model=x", "scorer.prm=p", f"output={tmp_path}/out"]
    sets += ["search.strategy=beam", "search.samples=6", "baseline=8"]
    assert await asyncio.to_thread(main, ["search", *(part for item in sets for part in ("--set", item))]) == 0

    rows = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    assert [(row["answer"], row["tokens"], row["chosen"]) for row in rows[2:4]] == [
        ("111", 4, False),
        ("110", 4, False),
    ]
    assert (rows[0]["chosen"], rows[0]["scores"]) == (True, [0.9] * 4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["generated_tokens"], summary["draws"], summary["solutions"]) == (24, 24, 6)
    assert summary["accuracy"]["prm"]["value"] == 1.0
    equal = summary["best_of_n_at_equal_tokens"]
    assert (equal["n"], equal["tokens"], equal["accuracy"]["prm"]["value"]) == (6.0, 24.0, 0.0)
    printed = capsys.readouterr().out
    assert re.search(r"prm +1.000 \[1.000, 1.000\] +0.000 \[0.000, 0.000\] +\+1.000", printed)
    assert "24 tokens a problem, 24 of best_of_6" in printed


def test_servers_are_told_where_to_stop() -> None:
    engine = EngineConfig(model="m", servers=ServersConfig(urls=["http://localhost:1/v1"]))
    sampler = ServerSampler(engine, SamplingConfig(temperature=0.7))
    body = sampler._body([], "", SampleRequest(PROBLEM, "", 1, 0, ("</step>",), greedy=True))
    assert (body["stop"], body["include_stop_str_in_output"], body["temperature"]) == (["</step>"], True, 0.0)
    plain = sampler._body([], "", SampleRequest(PROBLEM, "", 1, 0))
    assert "stop" not in plain
    assert plain["temperature"] == 0.7


def test_shares() -> None:
    assert shares(8, 3) == [3, 3, 2]
    assert shares(2, 3) == [1, 1, 0]


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
