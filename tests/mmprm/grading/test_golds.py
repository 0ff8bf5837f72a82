from __future__ import annotations

import pytest

from mmprm.errors import DataError
from mmprm.grading.golds import check_golds, is_decidable
from mmprm.grading.symbolic import GraderConfig
from mmprm.types import Problem

SENTENCE = "Because the wind blows from the north, the boat drifts away from the shore"


@pytest.mark.parametrize(
    ("gold", "decidable"),
    [
        ("5", True),
        ("2+3=<<2+3=5>>5 apples.\n#### 5", True),
        ("B. because it floats on the water", True),
        ("acute", True),
        ("x>3", True),
        ("Hence, the value is -1.", True),
        (SENTENCE, False),
    ],
)
def test_which_golds_symbolic_grading_can_decide(gold: str, decidable: bool) -> None:
    assert is_decidable(Problem("p", "Q", gold), GraderConfig()) is decidable


def test_a_file_without_gradable_golds_is_rejected_with_an_example() -> None:
    problems = [Problem(str(n), "Q", SENTENCE) for n in range(3)]
    with pytest.raises(DataError, match="none of the 3 answers can be graded, for example 'Because the wind"):
        check_golds(problems, GraderConfig(), "own.jsonl")
    check_golds([*problems, Problem("3", "Q", "7")], GraderConfig(), "own.jsonl")
