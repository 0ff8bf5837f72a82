from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm.steps import StepFormat, plain, split
from mmprm.types import Steps

SOLUTION = "<step>blue=5</step><step>red=3</step><step>5+3=8</step><answer>8</answer>"


def test_tagged_solution_ends_in_a_step_with_the_answer() -> None:
    steps = split(SOLUTION, "tags").steps
    assert steps == ("<step>blue=5</step>", "<step>red=3</step>", "<step>5+3=8</step>", "<answer>8</answer>")
    assert [plain(step, "tags") for step in steps] == ["blue=5", "red=3", "5+3=8", "<answer>8</answer>"]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_continuation_splits_into_the_remaining_steps(cut: int) -> None:
    steps = split(SOLUTION, "tags").steps
    assert split("".join(steps[cut:]), "tags").steps == steps[cut:]


def test_white_space_and_introductions_belong_to_a_step() -> None:
    text = "<think>\n<step_1>a</step_1>\n\n<step_2>b</step_2>\n</think><answer>1</answer>\n"
    steps = split(text, "tags").steps
    assert steps == ("<think>\n<step_1>a</step_1>\n\n", "<step_2>b</step_2>\n", "</think><answer>1</answer>\n")
    assert plain(steps[1], "tags") == "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("The answer is 8.", "no step"),
        ("<step>a</step><step>b", "unclosed step"),
        ("<step>a<step>b</step></step>", "nested step"),
        ("a</step>", "stray end of step"),
        ("<step>a</step><answer>8", "unclosed answer"),
    ],
)
def test_a_text_that_cannot_be_split_gives_a_reason(text: str, reason: str) -> None:
    result = split(text, "tags")
    assert (result.steps, result.reason) == ((), reason)


@pytest.mark.parametrize(
    ("step_format", "steps"),
    [
        ("tags", ("<step>a</step> \r\n\n", "  <step>b</step>", " <step>c</step>\n", "\t<answer>1</answer>")),
        ("blank_lines", ("We have:\n\n", "  - a = 1\n \n\n", "  - b = 2")),
        ("numbered", ("Step 1: a\n\n", "  Step 2: b\n", "<answer>1</answer>")),
    ],
)
def test_line_breaks_end_a_step_and_indentation_begins_one(step_format: StepFormat, steps: Steps) -> None:
    assert split("".join(steps), step_format).steps == steps


def test_blank_lines_separate_paragraphs() -> None:
    result = split("\n\nFirst.\nMore.\n \nSecond.\n\n\nThird.\n\n", "blank_lines")
    assert result.steps == ("\n\nFirst.\nMore.\n \n", "Second.\n\n\n", "Third.\n\n")
    assert plain(result.steps[0], "blank_lines") == "First.\nMore."


def test_numbered_steps_keep_lists_inside_a_step() -> None:
    text = "We solve it.\n**Step 1: Read**\n1. x\n2. y\n### Step 2: Add\n3.5 = z\n<answer>3</answer>"
    steps = split(text, "numbered").steps
    assert steps == (
        "We solve it.\n**Step 1: Read**\n1. x\n2. y\n",
        "### Step 2: Add\n3.5 = z\n",
        "<answer>3</answer>",
    )
    assert [plain(step, "numbered") for step in steps[1:]] == ["Add\n3.5 = z", "<answer>3</answer>"]
    assert split("4. four\n5) five", "numbered").steps == ("4. four\n", "5) five")
    assert split("no number", "numbered").reason == "no step"


PIECES = [
    "<step>",
    "</step>",
    "<step_2>",
    "</step_2>",
    "<answer>",
    "</answer>",
    "\n\n",
    "\n",
    " ",
    "Step 1:",
    "2.",
    "a",
    "é",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.sampled_from(["tags", "blank_lines", "numbered"])
)
def test_split_is_lossless_or_says_why(text: str, step_format: str) -> None:
    result = split(text, step_format)
    if result.reason is None:
        assert "".join(result.steps) == text
        assert all(step.strip() for step in result.steps)
    else:
        assert result.steps == ()


@given(st.lists(st.text("ab \n", min_size=1).filter(str.strip), min_size=1, max_size=6))
def test_tagged_steps_are_found_again(contents: list[str]) -> None:
    steps = tuple(f"<step>{content}</step>" for content in contents)
    result = split("".join(steps) + "<answer>1</answer>", "tags")
    assert result.steps == (*steps, "<answer>1</answer>")
    assert [plain(step, "tags") for step in result.steps[:-1]] == [content.strip() for content in contents]
