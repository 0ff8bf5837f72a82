"""Test whole responses against their golds: where the answer is found, and whether it is correct."""

from __future__ import annotations

import time

import pytest

from mmprm.grading.extract import MAX_LENGTH, extract
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.types import Problem, Verdict

RIGHT, WRONG, OPEN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
RESPONSES = [
    ("5", "The answer is **5**.", RIGHT),
    ("5", r"Therefore, the final answer is $\boxed{5}$", RIGHT),
    ("5", "So the answer is 6.", WRONG),
    ("5", "**Final Answer**\n\n5", RIGHT),
    ("5", "**Final answer:** $5$", RIGHT),
    ("5", "Final Answer: The answer is 5", RIGHT),
    ("5", "### Answer: 5", RIGHT),
    ("5", "Answer = 5", RIGHT),
    ("5", "ANSWER: 5", RIGHT),
    ("5", "The correct answer is: 5", RIGHT),
    ("5", "My answer is 5.", RIGHT),
    ("5", "Thus the result is 5.", RIGHT),
    ("5", "Answer:\n5", RIGHT),
    ("5", "Answer:\n\n$$5$$", RIGHT),
    ("5", "The answer is\n\\[5\\]", RIGHT),
    ("5", "最终答案：5", RIGHT),
    ("5", "答案为5", RIGHT),
    ("5", "因此，答案是 5。", RIGHT),
    ("5", "答：5", RIGHT),
    ("5", "A: 5", RIGHT),
    ("5", "Hence, x = 5.", RIGHT),
    ("5", "#### 5", RIGHT),
    ("5", "blah 3 4\n#### 5\n", RIGHT),
    ("5", "The answer is 5, not 6.", RIGHT),
    ("5", "I get 5", RIGHT),
    ("5", "I get 6", WRONG),
    ("5", "因此，结果为5。", RIGHT),
    ("5", "I first thought the answer is 5. But the answer is 6.", WRONG),
    ("42", r"\boxed{41} Wait. \boxed{42}", RIGHT),
    ("42", r"\boxed{42} hmm no \boxed{41}", WRONG),
    ("42", "<answer>42</answer> wait <answer>4", WRONG),
    ("42", "<answer>42</answer><answer>41</answer>", WRONG),
    ("42", r"<think>\boxed{42}</think>", WRONG),
    ("42", r"<think>\boxed{41}</think>\boxed{42}", RIGHT),
    ("42", "The answer is 42. Let me check: 40+2", RIGHT),
    ("42", r"\boxed{42", WRONG),
    ("42", "<think>hm</think> The answer is 42", RIGHT),
    ("1,3", r"The solutions are \boxed{1} and \boxed{3}.", RIGHT),
    ("1,3", r"\boxed{1}, \boxed{3}", RIGHT),
    ("1,3", r"x=\boxed{1} or x=\boxed{3}", RIGHT),
    ("3", r"First \boxed{1}. Then \boxed{3}", RIGHT),
    ("2,5,8", r"\boxed{2}, \boxed{5}, and \boxed{8}", RIGHT),
    ("1,3", r"$\boxed{1}$ and $\boxed{3}$", RIGHT),
    ("1, 3", r"\boxed{1, 3}", RIGHT),
    ("(1,3)", r"\boxed{(1,3)}", RIGHT),
    ("1,3", r"\boxed{1} \text{ and } \boxed{3}", RIGHT),
    ("1,3", r"\boxed{1}和\boxed{3}", RIGHT),
    ("C", "The answer is (C) 60.", RIGHT),
    ("C", r"\boxed{\text{C}}", RIGHT),
    ("C", r"\boxed{\textbf{(C)} 60}", RIGHT),
    ("C", "Answer: C", RIGHT),
    ("C", "So the correct choice is C", RIGHT),
    ("C", "答案是C", RIGHT),
    ("C", "故选C。", RIGHT),
    ("C", "故选：C．", RIGHT),
    ("C", "因此选项C正确", RIGHT),
    ("C", "Therefore, option C is correct.", RIGHT),
    ("C", "C is correct", RIGHT),
    ("C", "The answer is **C**", RIGHT),
    ("C", "The answer is **(C)**.", RIGHT),
    ("C", "Correct answer: C", RIGHT),
    ("C", r"\boxed{C. 60}", RIGHT),
    ("C", r"\boxed{B}", WRONG),
    ("C", "The answer is D, because C is wrong", WRONG),
    ("C", "The answer is either B or C.", WRONG),
    ("C", "I think C", RIGHT),
    ("C", r"\boxed{A, C}", WRONG),
    ("C", "C", RIGHT),
    ("C", "c", RIGHT),
    ("yes", "Yes, they are equal.", RIGHT),
    ("yes", "The answer is no.", WRONG),
    ("7", "There are 7 apples and 3 pears.", OPEN),
    ("10", "We need 10 more chairs.", RIGHT),
    ("5", "1+4=5", RIGHT),
    ("5", "The box has 3 rows of 4, so 12.", WRONG),
    ("12", "The box has 3 rows of 4, so 12.", RIGHT),
    ("0.5", "The probability is 1/2.", RIGHT),
    ("$5", "The cost is $5", RIGHT),
    ("$5", r"\boxed{\$5}", RIGHT),
    ("$5", r"\boxed{5}", RIGHT),
    ("5", r"\boxed{5 \text{ cm}}", RIGHT),
    ("5", r"\boxed{x = 5}", RIGHT),
    ("5", r"$x=\boxed{5}$", RIGHT),
    (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}.", RIGHT),
    (r"\frac{1}{2}", r"\fbox{1/2}", RIGHT),
    ("50", r"\boxed{50\%}", WRONG),
    ("x>3", "The solution is x > 3.", RIGHT),
    ("x>3", r"\boxed{(3, \infty)}", RIGHT),
    ("x>3", "The solution is all x greater than 3", OPEN),
]


@pytest.fixture(scope="module")
def grader():
    with SymbolicGrader() as grader:
        yield grader


def verdict(grader: SymbolicGrader, gold: str, response: str, question: str = "") -> Verdict:
    return grader.grade_many([(Problem("p", question, gold), response)])[0].verdict


@pytest.mark.parametrize(("gold", "response", "expected"), RESPONSES, ids=lambda value: str(value)[:40])
def test_verdict(grader: SymbolicGrader, gold: str, response: str, expected: Verdict) -> None:
    assert verdict(grader, gold, response) is expected


@pytest.mark.parametrize("piece", [r"\boxed{", "<think>", "the answer is ", "{", " ", "*", "$$", "<answer>"])
def test_extraction_time_is_linear_in_the_response(piece: str) -> None:
    begun = time.process_time()
    extract(piece * (4 * MAX_LENGTH // len(piece)))
    assert time.process_time() - begun < 2


def test_a_question_for_percent_makes_the_sign_optional(grader: SymbolicGrader) -> None:
    assert verdict(grader, "40", r"\boxed{40\%}", "What percent of the balls are red?") is RIGHT
    assert verdict(grader, "40", r"\boxed{40\%}", "How many balls are red?") is WRONG


def test_options_of_the_question_decide_a_value(grader: SymbolicGrader) -> None:
    question = "How long is it?\nA. 3 cm\nB. 5 cm\nC. 7 cm"
    assert verdict(grader, "B", "The answer is 5", question) is RIGHT
    assert verdict(grader, "B", "The answer is 7", question) is WRONG
    assert verdict(grader, "B", "The answer is 7") is OPEN


def test_answers_outside_a_closed_label_set_are_incorrect() -> None:
    with SymbolicGrader(GraderConfig(labels=("gneiss", "slate", "marble"))) as grader:
        answers = ("Gneiss", "slate", "a green stone", "It is gneiss", "gneiss or slate")
        found = [verdict(grader, "gneiss", f"<answer>{answer}</answer>") for answer in answers]
    assert found == [RIGHT, WRONG, WRONG, RIGHT, WRONG]
