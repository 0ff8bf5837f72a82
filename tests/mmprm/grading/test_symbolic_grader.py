from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.types import Grading, Problem, Verdict

HANGS = r"\int_0^1 9^{9^{9^{9}}} dx"


def problem(gold: str, *choices: str) -> Problem:
    return Problem("p", "Q", gold, choices=choices)


def tagged(answer: str) -> str:
    return f"<answer>{answer}</answer>"


@pytest.fixture(scope="module")
def grader():
    with SymbolicGrader(GraderConfig(timeout_seconds=1)) as grader:
        yield grader


def test_verdicts_in_order(grader: SymbolicGrader) -> None:
    pairs = [("24", "24"), ("24", "25"), ("2x", "x+x"), ("2x", "3x"), ("the wind", "a storm")]
    gradings = grader.grade_many([(problem(gold), tagged(answer)) for gold, answer in pairs])
    assert gradings == [
        Grading(Verdict.CORRECT, "24", "exact match"),
        Grading(Verdict.INCORRECT, "25", "different value"),
        Grading(Verdict.CORRECT, "x+x", "same value"),
        Grading(Verdict.INCORRECT, "3x", "different value"),
        Grading(Verdict.UNKNOWN, "a storm", "symbols cannot decide"),
    ]


def test_response_without_an_answer_is_incorrect(grader: SymbolicGrader) -> None:
    response = "I add.\nThen I multiply the sum by two and look at the figure again."
    assert grader.grade_many([(problem("24"), response)]) == [Grading(Verdict.INCORRECT, None, "no answer")]


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("\\text{(E)}", "E", Verdict.CORRECT),
        ("B", "(B)", Verdict.CORRECT),
        ("B.", "B. 25°", Verdict.CORRECT),
        ("(B)", "option b", Verdict.CORRECT),
        ("B", "C", Verdict.INCORRECT),
        ("B", "Because", Verdict.INCORRECT),
        ("B", "25", Verdict.UNKNOWN),
    ],
)
def test_bare_letters(grader: SymbolicGrader, gold: str, answer: str, verdict: Verdict) -> None:
    assert grader.grade_many([(problem(gold), tagged(answer))])[0].verdict is verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("B", "B", Verdict.CORRECT),
        ("B", "30", Verdict.CORRECT),
        ("30", "(B)", Verdict.CORRECT),
        ("B. 30", "B", Verdict.CORRECT),
        ("B", "25", Verdict.INCORRECT),
        ("B", "D", Verdict.INCORRECT),
    ],
)
def test_choices_by_letter_or_text(grader: SymbolicGrader, gold: str, answer: str, verdict: Verdict) -> None:
    [grading] = grader.grade_many([(problem(gold, "25", "30", "B. 35", "40"), tagged(answer))])
    assert grading.verdict is verdict


async def test_a_hanging_answer_is_unknown_and_does_not_block_the_loop(grader: SymbolicGrader) -> None:
    task = asyncio.ensure_future(grader.grade(problem("\\sqrt{5}"), tagged(HANGS)))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.02)
        ticks += 1
    assert task.result() == Grading(Verdict.UNKNOWN, HANGS, "no decision within 1 s")
    assert ticks > 10
    assert (await grader.grade(problem("2y"), tagged("y+y"))).verdict is Verdict.CORRECT


async def test_same_answer_is_compared_once(grader: SymbolicGrader, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    start = grader._start
    monkeypatch.setattr(grader, "_start", lambda *arguments: (starts.append(arguments), start(*arguments)))
    grading, *others = await asyncio.gather(*(grader.grade(problem("2z"), tagged("z+z")) for _ in range(5)))
    assert grading.verdict is Verdict.CORRECT
    assert others == [grading] * 4
    assert len(starts) == 1


async def test_a_canceled_caller_does_not_cancel_for_others(grader: SymbolicGrader) -> None:
    first, second = (asyncio.ensure_future(grader.grade(problem("2w"), tagged("w + w"))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).verdict is Verdict.CORRECT


def test_cache_is_bounded() -> None:
    with SymbolicGrader(GraderConfig(cache_size=2)) as grader:
        grader.grade_many([(problem("1"), tagged(str(i))) for i in range(5)])
        assert len(grader._cache) == 2


def test_long_answers_are_compared_as_text_only() -> None:
    with SymbolicGrader(GraderConfig(max_length=10)) as grader:
        long = "1+" * 10 + "1"
        gradings = grader.grade_many([(problem("11"), tagged(long)), (problem(long), tagged(long))])
    assert [grading.verdict for grading in gradings] == [Verdict.UNKNOWN, Verdict.CORRECT]


def test_importing_the_grader_loads_no_symbolic_library() -> None:
    code = "import mmprm.grading.symbolic, sys; print([m for m in ('sympy', 'torch', 'ray') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
