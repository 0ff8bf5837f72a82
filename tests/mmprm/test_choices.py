"""Test multiple choice: golds given as letter or text, and answers given as letter, text or value."""

from __future__ import annotations

import pytest

from mmprm.grading.symbolic import SymbolicGrader
from mmprm.types import Problem, Verdict

QUESTIONS = [
    (
        "A",
        ["30°", "40°", "50°", "60°"],
        [
            "30",
            "A",
            "30°",
            "x=30°",
            "(A)",
            "A. 30°",
            "The answer is 30°",
            "30 degrees",
            r"\angle B=30°",
            "The angle is 30°.",
            "a",
            r"\boxed{A}",
        ],
        [
            "40",
            "45",
            "30 or 40",
            "B",
            "D. 60°",
            "The answer is 60°",
            "(C)",
            "none of these",
            "A and B",
            "x=50",
            "40 degrees",
            "E",
            "30 or B",
        ],
    ),
    ("30°", ["30°", "40°", "50°", "60°"], ["A", "30°", "(A) 30"], ["B", "40°", "(D) 60°"]),
    (
        "C",
        [r"$\frac{1}{2}$", r"$\frac13$", r"$\sqrt{2}$", "not enough information"],
        [r"\sqrt2", "C", r"\sqrt{2}", r"(C) $\sqrt{2}$", "2^{1/2}", "1.41421"],
        ["0.5", "1/3", "A", "not enough information", "2", "1.41", "D"],
    ),
    (
        "D",
        [r"$\frac{1}{2}$", r"$\frac13$", r"$\sqrt{2}$", "not enough information"],
        ["not enough information", "D", "(D) not enough information", "Not enough information."],
        ["A", "0.5"],
    ),
    (
        "B",
        ["rises", "falls", "stays the same"],
        ["falls", "B", "It falls", "b) falls", "The price falls"],
        ["rises", "it rises", "C", "stays the same", "A"],
    ),
    ("A", ["2:3", "3:2", "1:1"], ["2:3", "A", "4:6", "2/3"], ["3:2", "B", "3/2"]),
    ("C", ["5 cm", "5 m", "50 cm", "0.5 km"], ["50 cm", "C", "0.5 m", "50", "C. 50 cm"], ["5 cm", "5 m", "A", "5"]),
    (
        "C",
        ["I only", "II only", "I and II", "neither"],
        ["I and II", "C", "C. I and II"],
        ["I only", "A", "II only", "neither", "D"],
    ),
    (
        "B",
        ["The moon", "The sun", "A star", "Both A and B"],
        ["The sun", "B", "the sun", "B. The sun"],
        ["A", "The moon", "D", "Both A and B"],
    ),
    (
        "D",
        ["The moon", "The sun", "A star", "Both A and B"],
        ["Both A and B", "D", "D. Both A and B"],
        ["A", "B", "A star"],
    ),
    ("E", ["1", "2", "3", "4", "5"], ["5", "E", "(E)", "E. 5"], ["1", "A", "4"]),
    ("2", ["1", "2", "3", "4"], ["2", "B", "(B) 2"], ["3", "A", "C"]),
    (
        "B",
        ["30°", "45°", "60°"],
        ["(B) 45°", "B (45°)", "B 45°", "(B)45°", "B: 45°", "The answer is (B)", r"\boxed{(B) 45°}"],
        ["(A) 30°", "A (30°)", "A 30°", "(C)60°"],
    ),
    ("(B)", ["left", "right"], ["(B) right", "B right", "(B)"], ["(A) left", "A left", "left"]),
]
"""Gold, options, right answers, wrong answers."""


@pytest.fixture(scope="module")
def grader():
    with SymbolicGrader() as grader:
        yield grader


@pytest.mark.parametrize(("gold", "choices", "correct", "incorrect"), QUESTIONS)
def test_verdicts(
    grader: SymbolicGrader, gold: str, choices: list[str], correct: list[str], incorrect: list[str]
) -> None:
    problem = Problem("p", "", gold, choices=tuple(choices))
    gradings = grader.grade_many([(problem, f"<answer>{answer}</answer>") for answer in correct + incorrect])
    wanted = [Verdict.CORRECT] * len(correct) + [Verdict.INCORRECT] * len(incorrect)
    found = zip(correct + incorrect, gradings, wanted, strict=True)
    assert [(answer, grading) for answer, grading, verdict in found if grading.verdict is not verdict] == []
