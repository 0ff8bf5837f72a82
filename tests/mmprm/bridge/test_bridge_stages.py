"""Test the stages for one problem with scripted models: requests, kept solutions, and every reason for rejection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import png

from mmprm.bridge.config import BridgeConfig
from mmprm.bridge.pipeline import KEPT_REASON, Bridge, BridgedProblem, bridge_problems
from mmprm.bridge.role import Said, split_thoughts
from mmprm.bridge.wording import build_wording
from mmprm.client import Failure
from mmprm.config import build
from mmprm.errors import EngineStoppedError, SamplingError
from mmprm.grading.symbolic import SymbolicGrader
from mmprm.types import AudioRef, ImageRef, Problem, Verdict, VideoRef

ROLE = {"engine": {"model": "m", "servers": {"urls": ["http://localhost:1"]}}}
PROBLEM = Problem("p", "<image>How long is AC?", "7", (ImageRef(data=png()),))
THOUGHTS = "The description says that AB is 3 and BC is 4, and both lie on one line. So I add 3 and 4, which gives 7."
SHOWN = THOUGHTS.replace("description says", "image shows")


class Model:
    """Returns the script's next reply and repeats the last one; a reply may be an exception."""

    def __init__(self, *script: Said | Exception) -> None:
        self.script, self.asked = script, list[tuple[Problem, int]]()

    async def ask(self, request: Problem, seed: int) -> Said:
        self.asked.append((request, seed))
        said = self.script[min(len(self.asked), len(self.script)) - 1]
        if isinstance(said, Exception):
            raise said
        return said


def bridged(
    reply: Said | Exception,
    *more: Said,
    seer: Sequence[Said | Exception] = (Said("notes"), Said("A line with AB = 3 and BC = 4.")),
    problem: Problem = PROBLEM,
    **settings: Any,
) -> tuple[BridgedProblem, Model, Model]:
    models = Model(*seer), Model(reply, *more)
    values = {"problems": {"path": "x"}, "seer": ROLE, "reasoner": ROLE, "min_words": 5}
    config = build(BridgeConfig, values | settings)
    with SymbolicGrader() as grader:
        bridge = Bridge(*models, grader, build_wording(), config)
        (found,) = asyncio.run(bridge_problems([problem], bridge))
    return found, *models


def test_a_correct_solution_is_repaired_and_kept() -> None:
    found, seer, reasoner = bridged(Said("It is <answer>7</answer>.", THOUGHTS))
    assert (found.reason, found.repairs, found.answer) == (KEPT_REASON, 2, "7")
    assert found.solution == f"<think>\n{SHOWN}\n</think>\n<answer>7</answer>"
    (explain, _), (describe, _) = seer.asked
    assert explain.images == describe.images == PROBLEM.images
    assert "Problem:\n<image>How long is AC?" in explain.question
    assert "Correct answer: 7" in explain.question
    assert "notes" in describe.question
    assert "7" not in describe.question, "the description request does not contain the answer"
    ((solve, _),) = reasoner.asked
    assert solve.images == ()
    assert "A line with AB = 3 and BC = 4." in solve.question
    assert solve.question.endswith("Problem:\nHow long is AC?"), "the image mark is removed"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Said("<answer>8</answer>", THOUGHTS), "incorrect answer"),
        (Said("", THOUGHTS), "incorrect answer"),
        (Said("<answer>7</answer>"), "no thoughts"),
        (Said("<answer>7</answer>", THOUGHTS, cut=True), "solution cut off"),
        (Said("<answer>7</answer>", "It is 7."), "thoughts too short"),
        (Said("<answer>7</answer>", "三加四"), "thoughts too short"),
        (Said("<answer>7</answer>", "三加四等于七"), KEPT_REASON),
        (Said("<answer>7</answer>", THOUGHTS * 9), "thoughts too long"),
        (Said("<answer>7</answer>", THOUGHTS + " <answer>7"), "tags in the solution"),
        (Said("<answer>7</answer>", THOUGHTS + " <image>"), "tags in the solution"),
        (Said("<answer>7</answer>", THOUGHTS + " <|im_end|>"), "special tokens in the solution"),
        (Said("<answer>7</answer>", THOUGHTS + " Such a caption!"), "betrays a text"),
        (SamplingError("no"), "request failed: SamplingError"),
    ],
)
def test_solutions_are_refused_by_reason(said: Said | Exception, reason: str) -> None:
    assert bridged(said, max_words=100)[0].reason == reason


def test_failures_name_their_kind() -> None:
    error = SamplingError("x")
    error.__cause__ = Failure("status 500")
    assert bridged(error)[0].reason == "request failed: status 500"
    with pytest.raises(EngineStoppedError):
        bridged(EngineStoppedError("gone"))


def test_servers_that_are_gone_end_all_problems() -> None:
    """The second problem waits for its reply when the first one finds the servers gone."""
    config = build(BridgeConfig, {"problems": {"path": "x"}, "seer": ROLE, "reasoner": ROLE})
    ended: list[str] = []

    class Gone:
        async def ask(self, request: Problem, seed: int) -> Said:
            if "AC" in request.question:
                raise EngineStoppedError("gone")
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("canceled")
            return Said("notes")

    async def run() -> None:
        problems = [PROBLEM, Problem("other", "What is next to it?", "7", PROBLEM.images)]
        with SymbolicGrader() as grader, pytest.raises(EngineStoppedError):
            await bridge_problems(problems, Bridge(Gone(), Gone(), grader, build_wording(), config))
        assert ended == ["canceled"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("seer", "reason"),
    [
        ([Said("")], "explanation empty"),
        ([Said("x", cut=True)], "explanation cut off"),
        ([Said("x"), Said(" ".strip())], "description empty"),
        ([Said("x"), Said("y", cut=True)], "description cut off"),
        ([Said("x"), Said("A line. The answer is 7.")], "description leaks the answer"),
    ],
)
def test_descriptions_are_refused_before_the_reasoner_is_asked(seer: list[Said], reason: str) -> None:
    found, _, reasoner = bridged(Said("<answer>7</answer>", THOUGHTS), seer=seer)
    assert (found.reason, reasoner.asked) == (reason, [])


def test_an_undecided_answer_is_not_kept() -> None:
    problem = Problem("p", "Why?", "because the red line is longer", PROBLEM.images)
    said = Said("<answer>since red exceeds blue in size</answer>", THOUGHTS)
    assert bridged(said, problem=problem)[0].reason == "unknown verdict"


def test_problems_with_other_options_are_other_problems() -> None:
    problems = [
        Problem(name, "Which is correct?", "A", PROBLEM.images, choices)
        for name, choices in (("p", ("red", "blue")), ("q", ("big", "small")), ("r", ("big", "small")))
    ]
    config = build(BridgeConfig, {"problems": {"path": "x"}, "seer": ROLE, "reasoner": ROLE, "min_words": 5})
    seer, reasoner = Model(Said("notes")), Model(Said("<answer>A</answer>", THOUGHTS))
    with SymbolicGrader() as grader:
        bridge = Bridge(seer, reasoner, grader, build_wording(), config)
        found = asyncio.run(bridge_problems(problems, bridge))
    assert [each.reason for each in found] == [KEPT_REASON, KEPT_REASON, "near-duplicate"]


def test_further_attempts_end_with_the_first_success() -> None:
    wrong, right = Said("<answer>8</answer>", THOUGHTS), Said("<answer>7</answer>", THOUGHTS)
    found, _, reasoner = bridged(wrong, right, attempts=3, seed=5)
    assert (found.reason, [seed for _, seed in reasoner.asked]) == (KEPT_REASON, [5, 6])
    assert bridged(wrong, right, attempts=1)[0].reason == "incorrect answer"


def test_problems_that_need_no_request(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno image")
    problems = [
        PROBLEM,
        Problem("again", "How long is AC ?", "7", PROBLEM.images),
        Problem("text", "How long is AC?", "7"),
        replace(PROBLEM, id="clip", videos=(VideoRef(path="clip.mp4"),)),
        replace(PROBLEM, id="sound", images=(), audios=(AudioRef(path="clip.mp4"),)),
        Problem("other", "How wide is AC?", "7", (ImageRef(path=str(broken)),)),
        Problem("twin", "How wide is AC?", "7", (ImageRef(path=str(broken)),)),
    ]
    seer, reasoner = Model(Said("notes")), Model(Said("<answer>7</answer>", THOUGHTS))
    config = build(BridgeConfig, {"problems": {"path": "x"}, "seer": ROLE, "reasoner": ROLE, "min_words": 5})
    with SymbolicGrader() as grader:
        bridge = Bridge(seer, reasoner, grader, build_wording(), config)
        found = asyncio.run(bridge_problems(problems, bridge))
    reasons = [KEPT_REASON, "near-duplicate", "no image", "video or audio", "video or audio"]
    assert [each.reason for each in found[:5]] == reasons
    assert found[1].detail == "of p"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a b</think>c", Said("c", "a b")),
        ("\n <think> a </think> c ", Said("c", "a")),
        ("a</think> c ", Said("c", "a")),
        ("c", Said("c")),
        ("<think>a", Said("<think>a")),
        ("a\ud800</think>c", Said("c", "a?")),
    ],
)
def test_split_thoughts(text: str, said: Said) -> None:
    assert split_thoughts(text) == said


def test_with_engines_all_images_are_described_before_the_first_solution() -> None:
    """The second problem is refused by its description, so it is not solved."""
    events: list[str] = []
    problems = [PROBLEM, Problem("leaks", "How wide is the red box?", "7", PROBLEM.images)]

    class Logged:
        async def ask(self, request: Problem, seed: int) -> Said:
            events.append("seer" if request.images else "reasoner")
            if not request.images:
                return Said("<answer>7</answer>", THOUGHTS)
            return Said("The answer is 7." if request.id == "leaks" else "A line with AB = 3 and BC = 4.")

    async def between() -> None:
        events.append("between")

    config = build(BridgeConfig, {"problems": {"path": "x"}, "seer": ROLE, "reasoner": ROLE, "min_words": 5})
    done: list[str] = []
    with SymbolicGrader() as grader:
        bridge = Bridge(Logged(), Logged(), grader, build_wording(), config)
        found = asyncio.run(bridge_problems(problems, bridge, lambda each: done.append(each.problem.id), between))
    assert events == ["seer"] * 4 + ["between", "reasoner"]
    assert [each.reason for each in found] == [KEPT_REASON, "description leaks the answer"]
    assert sorted(done) == ["leaks", "leaks", "p", "p"]


PIECES = (
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<answer>7</answer>",
        "<answer>8</answer>",
        "\\boxed{7}",
        "7",
        "8",
    ),
    *(
        "The description says ",
        "the image shows ",
        "caption ",
        "Therefore 7.",
        "the answer is 7",
        "given answer ",
        "{",
        "}",
    ),
    *("<|im_end|>", "<image>", "\ud800", "\x00", "中文 ", "\n", " and so on " * 30, "\\frac{", "$", "So AB = 3. "),
)


def test_a_thousand_random_replies_keep_nothing_incorrect() -> None:
    chance = random.Random(0)
    wording, kept = build_wording(), 0
    config = build(BridgeConfig, {"problems": {"path": "x"}, "seer": ROLE, "reasoner": ROLE, "min_words": 5})

    class Random:
        async def ask(self, request: Problem, seed: int) -> Said:
            if request.images and chance.random() < 0.7:
                return Said("A line with AB = 3 and BC = 4.")
            text, reasoning = ("".join(chance.choices(PIECES, k=chance.randrange(8))) for _ in range(2))
            text += "<answer>7</answer>" * chance.randrange(2)
            thoughts = f"<think>{reasoning}</think>" * chance.randrange(2)  # as ServerSampler joins them
            return split_thoughts(thoughts + text, cut=chance.random() < 0.05)

    async def run(grader: SymbolicGrader) -> None:
        nonlocal kept
        bridge = Bridge(Random(), Random(), grader, wording, config)
        for _ in range(1000):
            found = await bridge.run(BridgedProblem(PROBLEM, KEPT_REASON))
            if found.reason != KEPT_REASON:
                continue
            kept += 1
            assert (await grader.grade(PROBLEM, found.solution)).verdict is Verdict.CORRECT
            assert wording.betrayal(found.thoughts) is None
            assert found.solution.count("<") == 4
            assert found.solution.encode()

    with SymbolicGrader() as grader:
        asyncio.run(run(grader))
    assert kept >= 5, "some random replies are good, so the checks above ran"
