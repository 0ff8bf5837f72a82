"""Metrics of a policy evaluation by hand: pass@k, majority, and We-Math's four-way metrics."""

from __future__ import annotations

import pytest

from mmprm.evaluation.benchmarks import Item
from mmprm.evaluation.four_way import four_way
from mmprm.evaluation.pass_at_k import majority_share, pass_at_k
from mmprm.evaluation.policy import score
from mmprm.types import Problem, Verdict


def test_unknown_is_left_out_and_families_are_resampled_together() -> None:
    correct, incorrect, unknown = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
    found = score([[correct], [correct], [incorrect], [unknown]], [["7"]] * 4, ["a", "a", "b", "c"], 0)
    assert (found.correct, found.incorrect, found.unknown) == (2, 1, 1)
    assert found.accuracy.value == pytest.approx(2 / 4)
    assert found.of_known.value == pytest.approx(2 / 3)
    assert (found.of_known.low, found.of_known.high) == (0, 1), "one of two families may be drawn alone"
    nothing = score([[unknown]], [[None]], ["a"], 0)
    assert (nothing.accuracy.value, nothing.of_known, nothing.majority) == (0, None, None)


def test_samples_give_pass_at_k_and_the_majority() -> None:
    """Two questions of four samples, 2 and 0 of them correct: pass@2 = (1 - 1/6 + 0) / 2, pass@4 = 1/2."""
    correct, incorrect, unknown = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
    verdicts = [[correct, incorrect, correct, incorrect], [incorrect, unknown, incorrect, incorrect]]
    answers = [["7", "8", "7", "9"], ["1", None, "1", "2"]]
    found = score(verdicts, answers, ["a", "b"], 0)
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


def test_four_way_metrics_by_hand() -> None:
    """Seven composite problems: each kind once, all of loose and strict, and one with an unknown part."""
    table = {
        "mastery": "RRR",
        "rote, strict only": "RWR",
        "rote, both": "WWR",
        "inadequate": "RRW",
        "insufficient": "RWW",
        "insufficient, all": "WWW",
        "unknown": "R?R",
    }
    verdicts = {"R": Verdict.CORRECT, "W": Verdict.INCORRECT, "?": Verdict.UNKNOWN}
    parts = ("1", "2", "multi")
    items = [Item(Problem(f"{name}{part}", "Q", "A"), "", name, part) for name in table for part in parts]
    found = four_way(items, [verdicts[letter] for row in table.values() for letter in row])
    assert (found.problems, found.unknown) == (6, 1)
    assert found.insufficient == pytest.approx(2 / 6)
    assert found.inadequate == pytest.approx(1 / 6)
    assert found.mastery == pytest.approx({"strict": 1 / 6, "loose": 2 / 6})
    assert found.rote == pytest.approx({"strict": 2 / 6, "loose": 1 / 6})
    assert found.score == pytest.approx({"strict": 1.5 / 6, "loose": 2.5 / 6})
