"""Test how verdicts are read from the texts of a thinking judge, with worked texts and 1,000 malformed ones."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest

from benchmarks.judges_malformed import DAMAGES, FORMATS, malformed, written
from mmprm.scoring.verdicts import VERDICT_FORMATS, AfterError, FormatOfVerdicts, read_verdicts


def read(text: str, steps: int, form: FormatOfVerdicts = "plain", after: AfterError = "as_judged") -> object:
    return read_verdicts(text, steps, VERDICT_FORMATS[form], after)


@pytest.mark.parametrize("form", FORMATS)
def test_every_layout_is_read(form: FormatOfVerdicts) -> None:
    for verdicts in ([True], [False], [True, True, False], [True, False, True, True]):
        assert read(written(verdicts, form), len(verdicts), form) == tuple(verdicts)


def test_decorated_lines_are_read() -> None:
    assert read("**Step 1:** correct\n- Step 2: **incorrect**.\n> STEP 3 : Correct", 3) == (True, False, True)


def test_steps_after_the_first_error_are_incorrect_unless_judged() -> None:
    text = written([True, False, True], "plain")
    assert read(text, 3, after="incorrect") == (True, False, False)
    assert read(text, 3, after="as_judged") == (True, False, True)


def test_a_judge_may_stop_at_the_first_error() -> None:
    text = written([True, False], "thinkprm")
    assert read(text, 4, "thinkprm", "incorrect") == (True, False, False, False)
    assert read(text, 4, "thinkprm", "as_judged") == "a step without a verdict"
    assert read(written([True, True], "thinkprm"), 4, "thinkprm", "incorrect") == "a step without a verdict"


def test_verdicts_without_step_numbers_must_be_complete() -> None:
    """A single \\boxed{incorrect} may be about the whole solution, so it is no verdict on step 1."""
    assert read("The solution is \\boxed{incorrect}.", 3, "thinkprm", "incorrect") == (
        "another number of verdicts than steps"
    )
    assert read("\\boxed{correct} and \\boxed{\\text{incorrect}}", 2, "thinkprm") == (True, False)


def test_the_reply_counts_and_not_the_thoughts() -> None:
    thoughts = "<think>Step 1: correct\nno, wait</think>"
    assert read(thoughts + "Step 1: incorrect", 1) == (False,)
    assert read(thoughts, 1) == "no reply"
    assert read("<think>\nStep 1: correct", 1) == "no reply"


def test_thinkprm_gives_its_verdicts_in_the_thoughts() -> None:
    text = f"<think>{written([True, False], 'thinkprm')}</think>\nIs the solution correct? No"
    assert read(text, 2, "thinkprm") == (True, False)


def test_a_reply_that_contradicts_itself_is_not_replaced_by_the_thoughts() -> None:
    thoughts = f"<think>{written([True, True], 'thinkprm')}</think>"
    reply = written([True, False], "thinkprm") + "\n" + written([True, True], "thinkprm")
    assert read(thoughts + reply, 2, "thinkprm") == "contradictory verdicts"
    assert read(thoughts + written([True, False], "thinkprm"), 2, "thinkprm") == (True, False)
    assert read(thoughts + "The solution is \\boxed{correct}.", 2, "thinkprm") == (True, True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no reply"),
        ("All steps are correct.", "no verdicts"),
        ("Step 1: mostly correct\nStep 2: correct", "a step without a verdict"),
        ("Step 1: correct", "a step without a verdict"),
        ("Step 1: correct\nStep 2: correct\nStep 3: correct", "a verdict on a step that does not exist"),
        ("Step 0: correct\nStep 1: correct\nStep 2: correct", "a verdict on a step that does not exist"),
        ("Step 1: correct\nStep 2: correct\nStep 1: incorrect", "contradictory verdicts"),
        ("Step 1: correct or incorrect\nStep 2: correct", "a step without a verdict"),
    ],
)
def test_what_cannot_be_read_has_a_reason(text: str, reason: str) -> None:
    assert read(text, 2) == reason


def test_malformed_layouts_of_the_publications() -> None:
    blocks = written([True, False], "genprm")
    assert read(blocks.removesuffix("</output>\n"), 2, "genprm") == "an <output> block without exactly one verdict"
    assert read(blocks, 3, "genprm", "incorrect") == "another number of verdicts than steps"
    assert read(blocks.replace("No", "Maybe"), 2, "genprm") == "an <output> block without exactly one verdict"
    before = "\\boxed{correct}\n" + written([True, True], "thinkprm")
    assert read(before, 2, "thinkprm") == "a verdict before the first step"


def test_no_verdict_is_made_up_for_malformed_texts() -> None:
    reasons: Counter[object] = Counter()
    for index in range(1000):
        form, steps, text = malformed(index)
        for after in get_args(AfterError):
            answer = read(text, steps, form, after)
            assert isinstance(answer, str), (index, DAMAGES[index // 3 % len(DAMAGES)].__name__, after, text, answer)
        reasons[answer] += 1
    assert reasons.total() == 1000
    assert min(reasons.values()) > 0
    assert len(reasons) >= 7
