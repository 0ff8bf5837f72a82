from __future__ import annotations

import pytest

from mmprm.grading.extract import extract, open_gold


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>24</answer>", "24"),
        ("<answer>24 </answer>", "24"),
        ("<answer>$24$</answer>", "$24$"),
        ("<answer>\\boxed{24}</answer>", "24"),
        ("<answer>$\\boxed{24}$</answer>", "$24$"),
        ("<answer>1</answer> no, <answer>2\n3</answer>", "2\n3"),
        ("<ANSWER>5</ANSWER>", "5"),
        ("\\boxed{1}, so <answer>2</answer>", "2"),
        ("first \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1} and \\boxed{2", None),
        ("<answer>Since x=3, we get \\boxed{24}</answer>", "24"),
        ("<answer>\\boxed{7}, \\boxed{25}</answer>", "7, 25"),
        ("The final answer is 3.5.", "3.5"),
        ("The final answer is: $x$\nBye", "$x$"),
        ("**Final answer is 12** ", "12"),
        ("因此，结果为5。", "5"),
        ("<answer></answer>", None),
        ("<answer>24", None),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_extract(response: str, answer: str | None) -> None:
    assert extract(response) == answer


@pytest.mark.parametrize(
    ("gold", "opened"),
    [
        ("<think>2 and 3</think>\n\n5", "5"),
        ("<think>is it \\boxed{4}?</think><answer>5</answer>", "5"),
        ("so 2 + 3\n#### 5", "5"),
        ("5", "5"),
        ("</think>", "</think>"),
    ],
)
def test_a_gold_is_unwrapped_like_a_response(gold: str, opened: str) -> None:
    assert open_gold(gold) == opened
