"""Test that the extractor copies answers from responses and never invents one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from scripted_server import Act, ScriptedServer, error, says

from mmprm.config import build
from mmprm.evaluation.entries import Item
from mmprm.evaluation.extractor import AnswerExtractor, ExtractorConfig, is_stated
from mmprm.evaluation.policy import Graders
from mmprm.evaluation.rules import rounded
from mmprm.grading.symbolic import SymbolicGrader
from mmprm.types import Grading, Problem, Verdict

TALK = "Adding 6 to 8 gives the number that is missing.\nThe number missing in the sequence is 14, as I see it."


def gradings(folder: Path, act: Act, response: str, item: Item | None = None) -> tuple[dict[str, Grading], int]:
    """Grade a response with an extractor behind a server that answers with `act`; also count its requests."""
    item = item or Item(Problem("1", "Which number is missing?", "14"))

    async def run(url: str) -> dict[str, Grading]:
        client = {"urls": [url], "attempts": 1, "backoff_seconds": 0.01}
        config = build(ExtractorConfig, {"model": "m", "client": client, "cache": str(folder / "cache.sqlite")})
        async with AnswerExtractor(config) as extractor:
            return await Graders(grader, extractor).gradings(item, response)

    with ScriptedServer(act) as server, SymbolicGrader() as grader:
        return asyncio.run(run(server.url)), len(server.requests)


def test_an_answer_is_copied_and_graded(tmp_path: Path) -> None:
    found, requests = gradings(tmp_path, says("14."), TALK)
    assert (found["symbolic"].verdict, found["symbolic"].extracted) == (Verdict.INCORRECT, None)
    assert (found["extracted"].verdict, found["extracted"].extracted) == (Verdict.CORRECT, "14")
    again, repeated = gradings(tmp_path, error(500), TALK)
    assert (requests, repeated) == (1, 0), "the reply is cached"
    assert again == found


def test_the_benchmarks_rule_applies_to_extracted_answers(tmp_path: Path) -> None:
    item = Item(Problem("1", "Which number is missing?", "13.6"), rule=rounded(0))
    assert gradings(tmp_path, says("14"), TALK, item)[0]["extracted"].verdict is Verdict.CORRECT


def test_responses_with_an_answer_are_not_sent(tmp_path: Path) -> None:
    found, requests = gradings(tmp_path, says("14"), "<answer>15</answer>")
    assert (requests, found["extracted"]) == (0, found["symbolic"])
    assert gradings(tmp_path, says("14"), "")[1] == 0


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("None", "extractor: no answer"),
        ("none.", "extractor: no answer"),
        ("", "extractor: no answer"),
        ("15", "extractor: its answer is not in the response"),
        ("4", "extractor: its answer is not in the response"),
    ],
)
def test_a_reply_that_is_not_in_the_response_is_ignored(tmp_path: Path, reply: str, reason: str) -> None:
    grading = gradings(tmp_path, says(reply), TALK)[0]["extracted"]
    assert (grading.verdict, grading.extracted, grading.reason) == (Verdict.INCORRECT, None, reason)


def test_a_failed_request_leaves_the_verdict_unknown_and_is_repeated(tmp_path: Path) -> None:
    grading = gradings(tmp_path, error(500), TALK)[0]["extracted"]
    assert (grading.verdict, grading.extracted) == (Verdict.UNKNOWN, None)
    assert grading.reason == "extractor failed: status 500"
    assert gradings(tmp_path, says("14"), TALK)[0]["extracted"].verdict is Verdict.CORRECT


def test_an_option_may_be_named_by_its_letter(tmp_path: Path) -> None:
    problem = Problem("1", "Which color?\nA. red\nB. blue", "B", choices=("red", "blue"))
    response = "The sky in the image has one color.\nIt looks blue to me, not red at all."
    assert gradings(tmp_path, says("B"), response, Item(problem))[0]["extracted"].verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("answer", "response", "stated"),
    [
        ("(A)", "It is Red.", True),
        ("B", "So I choose (B) here.", True),
        ("B", "I cannot tell.", False),
        ("A", "It is blue; that is not a guess.", False),
        ("C", "It is red.", False),
        ("AB", "It is red or blue.", False),
        ("A", "A cube is drawn, and it is blue.", False),
        ("A", "I choose A because it shines.", True),
        ("B. blue", "The color is that of option B.", True),
        ("(B) blue", "It is blue.", True),
    ],
)
def test_a_letter_must_be_stated_as_such_or_by_the_text_of_its_option(answer: str, response: str, stated: bool) -> None:
    """Otherwise, the extractor could solve the question instead of copying the answer."""
    assert is_stated(answer, response, ("A. red", "blue")) == stated


@pytest.mark.parametrize(
    ("answer", "response", "stated"),
    [
        ("14", "It is 14.5 cm.", False),
        ("5", "It is 3.5 cm.", False),
        ("000", "It is 1,000.", False),
        ("3", "So x = -3.", False),
        ("-3", "So x = -3.", True),
        ("3", "The years 2-3.", True),
        ("14.5", "It is 14.5.", True),
        ("14", "It is 14, not 15.", True),
        ("\\frac{1}{2}", "So it is $\\frac{1}{2}$.", True),
    ],
)
def test_part_of_a_number_is_not_stated(answer: str, response: str, stated: bool) -> None:
    assert is_stated(answer, response, ()) == stated


def test_the_judge_sees_every_gold_answer() -> None:
    """The symbolic grader decides nothing, and the judge accepts only the second gold answer."""

    class Only:
        def __init__(self, gold: str | None) -> None:
            self.gold = gold

        async def grade(self, problem: Problem, response: str) -> Grading:
            verdict = Verdict.CORRECT if problem.answer == self.gold else Verdict.INCORRECT
            return Grading(verdict if self.gold else Verdict.UNKNOWN, "eight", "")

    item = Item(Problem("1", "How many volts?", "8.35"), also=("eight volts",))
    found = asyncio.run(Graders(Only(None), judged=Only("eight volts")).gradings(item, "eight"))
    assert (found["symbolic"].verdict, found["judged"].verdict) == (Verdict.UNKNOWN, Verdict.CORRECT)
