"""Test the answer rules of published benchmarks on worked values."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction

import pytest

from mmprm.evaluation.rules import (
    AnswerRule,
    containing,
    each_within,
    first_of,
    grade_by_rule,
    in_order,
    labeled,
    last_side,
    rounded,
    truncated,
    value_of,
    within,
)
from mmprm.grading.symbolic import SymbolicGrader
from mmprm.types import Grading, Problem, Verdict

CORRECT, INCORRECT, UNKNOWN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("errors", "answer", "verdict"),
    [
        ([0.1, 0.2], "3.15, 2.6", CORRECT),
        ([0.1, 0.2], "$2.7$ and $3.2$", CORRECT),
        ([0.1, 0.2], "3.3, 2.5", INCORRECT),
        ([0.1, 0.2], "3.1, 2.71", INCORRECT),
        ([0.1, 0.2], "3.1, 2.5, 9", INCORRECT),
        ([0.1, 0.2], "3.1, 3.1", INCORRECT),
        ([0.3], "2.9, 2.2", CORRECT),
        ([0.1, 0.2], "3.1", None),
        ([0.1, 0.2, 0.3], "3.1, 2.5", None),
    ],
)
def test_each_number_of_a_list_has_its_error(errors: list[float], answer: str, verdict: Verdict | None) -> None:
    decision = each_within(errors)("$3.1$,$2.5$", answer)
    assert (decision and decision[0]) == verdict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5 cm", 5),
        ("about 1,234", 1234),
        ("50%", Fraction(1, 2)),
        ("\\frac{1}{3}", Fraction(1, 3)),
        ("The distance is 12.5 km", Fraction(25, 2)),
        ("-0.30", Fraction(-3, 10)),
        ("2x", None),
        ("2, 3", None),
        ("Sep", None),
        ("", None),
    ],
)
def test_value_of(text: str, value: Fraction | None) -> None:
    found = value_of(text)
    assert (found[0] if found else None) == value


@pytest.mark.parametrize(
    ("rule", "gold", "answer", "verdict"),
    [
        (within(relative=0.05), "100", "105", CORRECT),
        (within(relative=0.05), "100", "105.01", INCORRECT),
        (within(relative=0.05), "-20", "-19", CORRECT),
        (within(relative=0.05), "0", "0.001", INCORRECT),
        (within(relative=0.05), "20%", "0.21", CORRECT),
        (within(absolute=0.001), "2.094", "2\\pi/3", CORRECT),
        (within(absolute=0.001), "2.094", "2.0951", INCORRECT),
        (within(absolute=0.01, percent=True), "0.25", "25", CORRECT),
        (within(absolute=0.01), "0.25", "25", INCORRECT),
        (within(absolute=0.1), "5 cm", "5.05 cm", CORRECT),
        (within(absolute=0.1), "5 cm", "5.05 m", None),
        (within(absolute=0.1), "5", "blue", None),
        (rounded(1), "0.6", "0.58", CORRECT),
        (rounded(1), "0.6", "0.54", INCORRECT),
        (rounded(2), "1.20", "1.199", CORRECT),
        (truncated, "7", "7.9", CORRECT),
        (truncated, "-7", "-7.9", CORRECT),
        (truncated, "8", "7.9", INCORRECT),
        (truncated, "50", "50%", CORRECT),
        (truncated, "50", "51 percent", INCORRECT),
        (rounded(1), "12.5", "12.46\\%", CORRECT),
        (rounded(2), "0.5", "50%", CORRECT),
        (rounded(2), "50%", "50", INCORRECT),
        (in_order, "[0, 8]", "0 and 8", CORRECT),
        (in_order, "[0, 8]", "\\{0, 8.0\\}", CORRECT),
        (in_order, "[0, 8]", "[8, 0]", INCORRECT),
        (in_order, "[0, 8]", "[0, 8, 9]", INCORRECT),
        (in_order, "[0, 8]", "8", None),
        (in_order, "[0, 8]", "a, b", None),
        (last_side, "33", "m + n = 20 + 13 = 33", CORRECT),
        (last_side, "33", "m = 33, n = 0", INCORRECT),
        (last_side, "33", "33", None),
        (last_side, "33", "33 = m", None),
        (labeled("yes", "no"), "Yes", "Yes, there is.", CORRECT),
        (labeled("yes", "no"), "Yes", "There is one", INCORRECT),
        (labeled("yes", "no"), "No", "yes and no", INCORRECT),
        (containing, "transistor", "a bipolar transistor", CORRECT),
        (containing, "transistor", "not a transistor", None),
        (containing, "on", "one", None),
        (containing, "12", "125", None),
        (containing, "2x", "2x + 1", None),
        (first_of(rounded(2), containing), "eight volts", "about eight volts", CORRECT),
        (first_of(rounded(2), containing), "8.35", "8.4", INCORRECT),
    ],
)
def test_rules(rule: AnswerRule, gold: str, answer: str, verdict: Verdict | None) -> None:
    decision = rule(gold, answer)
    assert (decision[0] if decision else None) is verdict


def graded(rule: AnswerRule | None, response: str, also: tuple[str, ...] = ()) -> tuple[Verdict, str | None]:
    with SymbolicGrader() as grader:
        grading = asyncio.run(grade_by_rule(Problem("1", "How far?", "2.1"), also, rule, response, grader))
    return grading.verdict, grading.extracted


def test_the_rule_decides_where_it_applies() -> None:
    assert graded(within(absolute=0.001), "<answer>2.11</answer>")[0] is INCORRECT
    assert graded(None, "<answer>2.11</answer>")[0] is CORRECT, "to the gold's decimals"
    assert graded(within(absolute=0.001), "<answer>blue</answer>") == (INCORRECT, "blue"), "the symbolic verdict"
    assert graded(within(absolute=9), "I think so <answer>") == (INCORRECT, None), "no answer"


def test_the_best_verdict_over_all_golds_counts() -> None:
    rule = within(absolute=0.001)
    assert graded(rule, "<answer>3</answer>", ("3.0", "4"))[0] is CORRECT
    assert graded(rule, "<answer>5</answer>", ("3.0", "4"))[0] is INCORRECT


HOSTILE = (
    *("9^{9^{9^{9}}}", "\\frac{1}{0}", "(" * 150 + "1" + ")" * 150, "1e999999999", "-", "%", "\\sqrt{-4}", "i", "\x00"),
    *("\\sum_{k=1}^{10^9} k", "10^{400}!", "9" * 290, "∞", "\\log 0", "nan", "inf", "\ud800", "1/3%", "\\frac{", "$$"),
)


class Undecided:
    """Extracts the whole response and never decides, so that only the rule applies."""

    async def grade(self, problem: Problem, response: str) -> Grading:
        return Grading(UNKNOWN, response, "")


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_judged_quickly_and_never_raise(answer: str) -> None:
    began = time.thread_time()
    for rule in (within(relative=0.05), rounded(2), truncated, labeled("yes", "no"), containing, in_order, last_side):
        grading = asyncio.run(grade_by_rule(Problem("1", "Q", "2.1"), (), rule, answer, Undecided()))
        assert grading.verdict is not CORRECT
    assert time.thread_time() - began < 2
