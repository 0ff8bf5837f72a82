from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from mmprm.selection.paths import Path, PathState, Writer
from mmprm.steps import ends_within, plain, split
from mmprm.types import Completion, Problem, SampleRequest

BLOCK = "We count:\n```python\nn = 1\n\nm = 2\n```\n\n"


@pytest.mark.parametrize(
    "marks",
    [
        ("Step1: ", "Step2: "),
        ("STEP 9: ", "Step 10: "),
        ("Step 1 - ", "Step 2 – "),
        ("Step one: ", "Step two: "),
        ("Step II: ", "Step III: "),
        ("Step #1: ", "Step #2: "),
        ("Step 1/2: ", "Step 2 of 2: "),
        ("Step 1\n", "Step 2\n"),
        ("### Step 1\n", "### Step 2\n"),
        ("**Step 1**: ", "**Step 2:** "),
        ("*Step 1:* ", "***Step 2:*** "),
        ("- Step 1: ", "- **Step 2.** "),
        ("[Step 1] ", "**[Step 2]** "),
        ("> Step 1: ", "> Step 2: "),
        ("步骤1：", "步骤2："),
        ("步骤一：", "**步骤二**："),
        ("【步骤一】", "【步骤二】"),
        ("第一步，", "第二步，"),
        ("第 10 步 ", "第十一步："),
        ("一、", "二、"),
        ("1、", "2、"),
        ("(1) ", "(2) "),
        ("（1）", "（2）"),
        ("① ", "② "),
        ("1.", "2."),
        ("- 1) ", "- 2) "),
        ("**1.** ", "**2.** "),
        ("## 1. ", "## 2. "),
        ("Step 1- ", "Step 2- "),
        ("\\textbf{Step 1:} ", "\\textbf{Step 2}: "),
        ("\\section*{Step 1}\n", "\\subsection{Step 2}\n"),
        ("<b>Step 1</b>: ", "<strong>Step 2:</strong> "),
        ("ステップ1：", "ステップ2："),
        ("1단계: ", "2단계: "),
        ("（一）", "（二）"),
        ("Step 1—", "Step 2—"),
        ("Schritt 1: ", "Étape 2 : "),
    ],
)
def test_supported_step_markers(marks: Sequence[str]) -> None:
    first, second = f"{marks[0]}read\n", f"{marks[1]}\\boxed{{5}}"
    found = split(first + second, "numbered")
    assert found.steps == (first, second)
    assert [plain(step, "numbered") for step in found.steps] == ["read", "\\boxed{5}"]


@pytest.mark.parametrize(
    "text", ["Step 1 gives 5", "Step 1.5 is", "1:30 pm", "3.5 = z", "Steps: a", "Stepwise: a", "1 - 2 = -1"]
)
def test_numbers_in_a_sentence_mark_no_step(text: str) -> None:
    assert split(text, "numbered").reason == "no step"


def test_thoughts_may_begin_with_a_mark() -> None:
    steps = ("<think>Step 1: read\n", "Step 2: add</think>\n", "Answer: 5")
    assert split("".join(steps), "numbered").steps == steps
    assert [plain(step, "numbered") for step in steps] == ["<think>read", "add</think>", "Answer: 5"]


@pytest.mark.parametrize("answer", ["#### 5", "#### $\\frac12$", "### Conclusion\nIt is 5.", "**Final result:** 5"])
def test_answers_in_more_forms_are_a_separate_step(answer: str) -> None:
    assert split(f"Step 1: a\nStep 2: b\n\n{answer}", "numbered").steps == ("Step 1: a\n", "Step 2: b\n\n", answer)


@pytest.mark.parametrize(
    ("open_", "close"),
    [
        ("<Step>", "</Step>"),
        ("<step 1>", "</step 1>"),
        ("<step2>", "</step2>"),
        ('<step id="1">', "</step>"),
        ("<STEP-1 >", "</STEP-1>"),
    ],
)
def test_tags_are_known_in_other_spellings(open_: str, close: str) -> None:
    steps = (f"{open_}read{close}\n", f"{open_}add{close}\n", "<answer>5</answer>")
    assert split("".join(steps), "tags").steps == steps
    assert [plain(step, "tags") for step in steps] == ["read", "add", "<answer>5</answer>"]
    assert split("<stepwise>a</stepwise>", "tags").reason == "no step"


@pytest.mark.parametrize(
    "steps", [("a\n\n", "<pre>\nx\n\ny\n</pre>\n\n", "b"), ("a\n\n---\n\n", "b"), ("***\n\na\n\n", "b")]
)
def test_html_code_and_rules_do_not_split_paragraphs(steps: Sequence[str]) -> None:
    assert split("".join(steps), "blank_lines").steps == tuple(steps)


@pytest.mark.parametrize(
    "steps",
    [
        ("1. Read:\n   1. blue\n   2. red\n", "2. Add"),
        ("1. Cases:\n(1) even\n(2) odd\n", "2. Add"),
        ("(1) Cases:\n1. even\n2. odd\n", "(2) Add"),
        ("Step 1: Read\n1. blue\n2. red\n", "Step 2: Add"),
        ("Step 1: Code\n```\n# Step 2: not yet\n```\n", "Step 2: Add"),
    ],
)
def test_lists_and_code_stay_in_their_step(steps: Sequence[str]) -> None:
    assert split("".join(steps), "numbered").steps == tuple(steps)


@pytest.mark.parametrize(
    "answer",
    [
        "### Final Answer\n5",
        "**Final Answer:** 5",
        "**Answer**\n5",
        "Final answer: 5",
        "Answer: 5",
        "答案：5",
        "<answer>5",
    ],
)
def test_a_heading_or_a_mark_begins_the_answer(answer: str) -> None:
    assert split(f"### Step 1: Read\nx\n\n### Step 2: Add\ny\n\n{answer}", "numbered").steps[2:] == (answer,)


@pytest.mark.parametrize(
    "answer",
    ["The answer is 5.", "So, the final answer is $5$\n\n", "Therefore the correct answer is: 5", "Answer is 5"],
)
def test_a_sentence_on_the_last_line_gives_the_answer(answer: str) -> None:
    steps = ("Step 1: x\n", "Step 2: 2 + 3 = 5.\n", answer)
    assert split("".join(steps), "numbered").steps == steps
    assert split("".join(steps[1:]), "numbered").steps == steps[1:]
    assert plain(answer, "numbered") == answer.strip()


@pytest.mark.parametrize(
    "text",
    [
        "Step 1: The answer is 5.",
        "Step 1: x\nThe answer is a sum, so we add.\nIt is 5.",
        "Step 1: x\nThe answers are 5 and 6.",
        "Step 1: x\n```\nThe answer is 5",
    ],
)
def test_a_sentence_about_the_answer_elsewhere_does_not(text: str) -> None:
    assert split(text, "numbered").steps == (text,)


def test_a_heading_before_the_sentence_begins_the_answer() -> None:
    steps = ("Step 1: x\n", "### Final Answer\nThe answer is 5.")
    assert split("".join(steps), "numbered").steps == steps


@pytest.mark.parametrize(
    "steps",
    [
        (BLOCK, "Then 3."),
        ("~~~~\na\n~~~\n\nb\n~~~~\n\n", "3"),
        ("So\n\n", "\\begin{align}\na\n\n\\begin{align}\n\n\\end{align}\n\n\\end{align}\n\n", "3"),
        ("\\[\na\n\n= b\n\\]\n\n", "3"),
        ("$$\na\n\n= b\n$$\n\n", "3"),
        ("It costs $$5\n\n", "and $$6\n\n", "3"),
        ("We have $$\na\n\n= b\n$$\n\n", "3"),
        ("Thus $$x$$\n\n", "and $$y$$\n\n", "3"),
        ("$$x$$\n\n", "$$y$$ $$z$$\n\n", "3"),
        ("\\begin{cases} is not closed\n\n", "3"),
        ("```\ncut\n\noff",),
    ],
)
def test_blank_lines_do_not_cut_code_environments_and_display_math(steps: Sequence[str]) -> None:
    assert split("".join(steps), "blank_lines").steps == tuple(steps)


@pytest.mark.parametrize(
    ("text", "within"), [("```\na\n\n", True), ("\\[ a\n\n", True), (BLOCK, False), ("a\n\n", False)]
)
def test_a_text_may_end_inside_an_unsplittable_block(text: str, within: bool) -> None:
    assert ends_within(text) == within


def test_many_unclosed_openings_are_parsed_quickly() -> None:
    started = time.process_time()
    for text in ("\\begin{a}" * 5000, "\\[" * 20000, "```\n" * 20000, "Step 1: x\n" * 20000, "$$\n" * 20001):
        for step_format in ("blank_lines", "numbered"):
            split(text, step_format)
        ends_within(text)
    assert time.process_time() - started < 5


class Halting:
    """Writes a code block with a blank line, and stops at the requested stop string."""

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        rest = (BLOCK + "Then 3.")[len(request.prefix) :]
        if request.stop and request.stop[0] in rest:
            rest = rest[: rest.index(request.stop[0]) + len(request.stop[0])]
            return (Completion(rest, 2, "stop"),) * request.n
        return (Completion(rest, 5, "stop"),) * request.n


def test_a_stop_in_a_code_block_ends_no_step() -> None:
    writer = Writer(Problem("p", "q", "3"), Halting(), "blank_lines", 0)

    async def two() -> None:
        (first, other) = await writer.steps((await writer.steps(Path(), 1))[0], 2)
        assert first.steps == other.steps == (BLOCK, "Then 3.")
        assert first.state is PathState.COMPLETE

    asyncio.run(two())
    assert (writer.samples, writer.tokens) == (4, 2 + 5 + 5 + 5)
