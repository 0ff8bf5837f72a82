"""Test the metrics of a policy evaluation by hand: pass@k, majority, and We-Math's four-way metrics."""

from __future__ import annotations

import pytest

from mmprm.evaluation.entries import Item
from mmprm.evaluation.four_way import four_way
from mmprm.evaluation.pass_at_k import majority_share, pass_at_k
from mmprm.evaluation.policy_scores import score
from mmprm.types import Problem, Verdict


def test_unknown_is_left_out_and_families_are_resampled_together() -> None:
    correct, incorrect, unknown = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
    found = score([[correct], [correct], [incorrect], [unknown]], [["7"]] * 4, ["a", "a", "b", "c"], 1, 0)
    assert (found.correct, found.incorrect, found.unknown) == (2, 1, 1)
    assert found.accuracy.value == pytest.approx(2 / 4)
    assert found.of_known.value == pytest.approx(2 / 3)
    assert (found.of_known.low, found.of_known.high) == (0, 1), "a resample may contain only one of two families"
    nothing = score([[unknown]], [[None]], ["a"], 1, 0)
    assert (nothing.accuracy.value, nothing.of_known, nothing.majority) == (0, None, None)


def test_samples_give_pass_at_k_and_the_majority() -> None:
    """Two questions have 2 and 0 correct of four samples: pass@2 = (1 - 1/6 + 0) / 2, pass@4 = 1/2."""
    correct, incorrect, unknown = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
    verdicts = [[correct, incorrect, correct, incorrect], [incorrect, unknown, incorrect, incorrect]]
    answers = [["7", "8", "7", "9"], ["1", None, "1", "2"]]
    found = score(verdicts, answers, ["a", "b"], 4, 0)
    assert found.accuracy.value == pytest.approx(2 / 8)
    assert {k: value.value for k, value in found.pass_at.items()} == pytest.approx({2: 5 / 12, 4: 1 / 2})
    assert found.of_known.value == pytest.approx(2 / 7)
    assert found.majority.value == pytest.approx(1 / 2)


def test_pass_at_k_by_hand() -> None:
    assert [pass_at_k(5, 2, k) for k in (1, 2, 4, 5)] == pytest.approx([0.4, 0.7, 1, 1])
    assert pass_at_k(3, 0, 3) == 0
    with pytest.raises(ValueError, match="k=4 must be between 1 and n=3"):
        pass_at_k(3, 1, 4)


def test_the_majority_of_a_tie_is_shared() -> None:
    correct, incorrect = Verdict.CORRECT, Verdict.INCORRECT
    assert majority_share(["1", "2", None, None], [correct, incorrect, incorrect, incorrect]) == 0.5
    assert majority_share([None], [incorrect]) == 0


def test_questions_that_could_not_be_sampled_count_as_incorrect() -> None:
    """Of three questions with two samples, one has 2 correct, one has 1 and one no responses: accuracy 3/6,
    pass@2 2/3.
    """
    correct, incorrect = Verdict.CORRECT, Verdict.INCORRECT
    found = score([[correct] * 2, [correct, incorrect], []], [["7"] * 2, ["7", "8"], []], ["a", "b", "c"], 2, 0)
    assert (found.correct, found.incorrect, found.unknown, found.failed) == (3, 1, 0, 2)
    assert (found.accuracy.value, found.pass_at[2].value) == (pytest.approx(1 / 2), pytest.approx(2 / 3))
    assert found.of_known.value == pytest.approx(3 / 4)
    assert found.majority.value == pytest.approx(1.5 / 3), "a tie of one correct and one incorrect answer is a half"


def test_four_way_metrics_by_hand() -> None:
    """Six composite problems cover each kind under the strict and the loose rule. Rote is a fraction of the three
    solved ones.
    """
    table = {
        "mastery": "RRR",
        "rote, strict only": "RWR",
        "rote, both": "WWR",
        "inadequate": "RRW",
        "insufficient": "RWW",
        "insufficient, all": "WWW",
    }
    parts = ("1", "2", "multi")
    items = [Item(Problem(f"{name}{part}", "Q", "A"), {}, name, part) for name in table for part in parts]
    found = four_way(items, [letter == "R" for row in table.values() for letter in row])
    assert found == pytest.approx(
        {
            "insufficient knowledge": 2 / 6,
            "inadequate generalization": 1 / 6,
            "complete mastery, strict": 1 / 6,
            "complete mastery, loose": 2 / 6,
            "rote memorization, strict": 2 / 3,
            "rote memorization, loose": 1 / 3,
            "score, strict": 1.5 / 6,
            "score, loose": 2.5 / 6,
        }
    )
    assert four_way([Item(Problem("1", "Q", "A"), {}, "f", "1")], [True]) == {}, "no composite problem"
