"""Build the prompts of the three stages: explain the answer, describe the image, and solve from the description."""

from __future__ import annotations

from typing import Any

from mmprm.data.choices import asked_question
from mmprm.data.marks import strip_marks
from mmprm.prompts import PromptConfig, messages
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


def explain_messages(problem: Problem) -> list[dict[str, Any]]:
    """Build the messages that ask for a pseudo chain of thought: what the image shows, and how the known answer
    follows."""
    return _about_image(problem, _EXPLAIN, problem.answer + _EXPLAIN_END)


def describe_messages(problem: Problem, notes: str) -> list[dict[str, Any]]:
    """Build the messages that ask for a description of the image, given the pseudo chain of thought. The description
    must suffice to solve the problem."""
    return _about_image(problem, _DESCRIBE, notes + _DESCRIBE_END)


def solve_messages(problem: Problem, description: str) -> list[dict[str, Any]]:
    """Build the messages that ask for a solution from the description, without the image."""
    question = strip_marks(asked_question(problem)).strip()
    return [{"role": "user", "content": f"{_SHOWN}{description}{_SOLVE}{question}"}]


def _about_image(problem: Problem, before: str, end: str) -> list[dict[str, Any]]:
    """Build a user turn with the images and the text `before` + `end`, in which {question} is filled in."""
    return messages(problem, PromptConfig(preset="plain", user=before + end))
