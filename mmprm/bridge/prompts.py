"""Build the requests of the three stages: explain the answer, describe the image, and solve from the description.

A request is a problem without an answer, whose question is the text to send."""

from __future__ import annotations

from mmprm.data.choices import asked_question
from mmprm.data.marks import strip_marks
from mmprm.types import Problem

_EXPLAIN = """\
Study the image and the problem below. Its correct answer is known, and your explanation has to arrive at it.

Problem:
{question}

Correct answer: """

_EXPLAIN_END = """

First list everything in the image that bears on the problem. Then explain step by step how the answer follows."""

_DESCRIBE = """\
Here are an image and a problem about it.

Problem:
{question}

Notes on the image and the problem:
"""

_DESCRIBE_END = """

Someone who cannot see the image has to solve the problem from your words alone. Describe the image for them in full: \
every object, label, number, length, angle, position and relation that the problem may need. Use the notes to decide \
what matters, and check them against the image. Only describe: do not solve the problem, do not draw conclusions, and \
do not state its answer."""

_SHOWN = "This is what an image shows:\n"

_SOLVE = """

Solve this problem about the image. Reason as if you were looking at the image yourself. End with the final answer \
alone between <answer> and </answer>.

Problem:
"""


def explain_request(problem: Problem) -> Problem:
    """Build the request for a pseudo chain of thought: what the image shows, and how the known answer follows."""
    return _about_image(problem, _EXPLAIN, problem.answer + _EXPLAIN_END)


def describe_request(problem: Problem, notes: str) -> Problem:
    """Build the request for a description of the image, given the pseudo chain of thought. The description must suffice
    to solve the problem."""
    return _about_image(problem, _DESCRIBE, notes + _DESCRIBE_END)


def solve_request(problem: Problem, description: str) -> Problem:
    """Build the request for a solution from the description, without the image."""
    question = strip_marks(asked_question(problem)).strip()
    return Problem(problem.id, f"{_SHOWN}{strip_marks(description)}{_SOLVE}{question}", "")


def _about_image(problem: Problem, before: str, end: str) -> Problem:
    """Build a request with the images and the text `before` + `end`, in which {question} is filled in."""
    head, _, tail = before.partition("{question}")
    # The images stay at their marks in the question; without marks, they precede the text.
    return Problem(problem.id, f"{head}{asked_question(problem)}{tail}{strip_marks(end)}", "", problem.images)
