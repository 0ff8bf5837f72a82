"""Test how long chains of thought are split into steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm.steps import MIN_THOUGHT_CHARACTERS, plain_split, split, trace_length, write_steps

LONG = "x" * MIN_THOUGHT_CHARACTERS
SHORT = "So 2 + 3 = 5."
PIECES = [
    SHORT,
    LONG,
    "Wait, no.",
    "\n\n",
    "\n",
    "<think>",
    "</think>",
    "```\na\n\nb\n```",
    "```\n",
    "\\[",
    "\\]",
    "Alternatively, try 4.",
    " ",
]


def steps(text: str) -> tuple[str, ...]:
    return split(text, "thoughts").steps


def test_paragraphs_are_joined_until_they_are_long_enough() -> None:
    half = "y" * (MIN_THOUGHT_CHARACTERS // 2)
    assert steps(f"{half}\n\n{half}\n\n{half}") == (f"{half}\n\n{half}\n\n", half)
    assert steps(f"{LONG[:-1]}\n\nb") == (f"{LONG[:-1]}\n\nb",)
    assert steps(f"{LONG}\n\nb") == (f"{LONG}\n\n", "b")


@pytest.mark.parametrize(
    "turn",
    [
        "Wait, that is wrong.",
        "But wait. The image shows 3.",
        "Alternatively, use the area.",
        "Hmm, is it?",
        "Hold on: the angle is obtuse.",
        "Actually, x is 4.",
        "Okay, let me double-check this.",
        "Let's verify the sum.",
        "Another approach is to count.",
    ],
)
def test_a_turn_of_thought_begins_a_step(turn: str) -> None:
    assert steps(f"{SHORT}\n\n{turn}\n\n{SHORT}") == (f"{SHORT}\n\n", f"{turn}\n\n{SHORT}")


@pytest.mark.parametrize(
    "other", ["Waiting costs 3.", "So the sum is 5.", "The actual value is 4.", "Let me add them."]
)
def test_other_paragraphs_do_not(other: str) -> None:
    assert steps(f"{SHORT}\n\n{other}") == (f"{SHORT}\n\n{other}",)


def test_the_final_answer_is_not_part_of_the_thoughts() -> None:
    text = f"<think>\n\n{SHORT}\n\n</think>\n\nThe answer is 5.\n\n{SHORT}"
    found = steps(text)
    assert found == (f"<think>\n\n{SHORT}\n\n</think>\n\n", f"The answer is 5.\n\n{SHORT}")
    assert trace_length(found) == 1
    assert steps("<thinking>\n\nWait, no.</thinking>") == ("<thinking>\n\nWait, no.</thinking>",)
    assert trace_length(found[1:]) is None
    assert trace_length(("a", "b</think>", "c", "d</think>", "e")) == 4


def test_code_blocks_stay_whole() -> None:
    block = f"```\n{LONG}\n\nwait\n```"
    assert steps(f"{SHORT}\n\n{block}\n\n{SHORT}") == (f"{SHORT}\n\n{block}\n\n", SHORT)


def test_what_the_thoughts_leave_open_does_not_reach_into_the_answer() -> None:
    for opening in ("```", "\\["):
        text = f"<think>\n{opening}\nx = 1\n</think>\n\n{LONG}\n\nThe answer is 5. \\]"
        assert steps(text)[1:] == (f"{LONG}\n\n", "The answer is 5. \\]")


def test_steps_are_found_again() -> None:
    assert write_steps([LONG, "Wait, no.", SHORT], "thoughts").reason == "other steps"
    assert write_steps([LONG, "Wait, no."], "thoughts").steps == (f"{LONG}\n\n", "Wait, no.")
    assert plain_split(f"{LONG}\n\nWait, no.\n", "thoughts").steps == (LONG, "Wait, no.")


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=20).map("".join))
def test_splitting_is_lossless_and_continues_from_every_boundary(text: str) -> None:
    found = steps(text)
    assert "".join(found) == (text if text.strip() else "")
    for count in range(1, len(found)):
        assert steps("".join(found[:count])) == found[:count]
        assert steps("".join(found[count:])) == found[count:]
