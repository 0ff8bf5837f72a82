"""Test the comparison of a policy before and after training, paired by problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprm.selection.groups import Candidate, CandidateGroup
from mmprm.tiny.demo_metrics import gain_of, gain_summary
from mmprm.types import Problem, Verdict

VERDICTS = {"r": Verdict.CORRECT, "w": Verdict.INCORRECT, "?": Verdict.UNKNOWN}


def groups(*samples: str) -> list[CandidateGroup]:
    """Return one group per word; each letter is the verdict of one sample."""
    return [
        CandidateGroup(
            Problem(str(number), "", ""), tuple(Candidate("", (), None, VERDICTS[letter], 1) for letter in word)
        )
        for number, word in enumerate(samples)
    ]


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    records = [{"kind": "train", "step": 1, "accuracy": 0.25}, {"kind": "eval", "step": 1, "pass_at_1": 0.5}]
    records.append({"kind": "train", "step": 2, "accuracy": 0.75})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_shares_are_of_known_verdicts_and_paired_by_problem(metrics: Path) -> None:
    gain = gain_of(groups("rw", "ww", "r?", "??"), groups("rr", "rw", "rr", "rr"), metrics)
    assert gain.before.value == pytest.approx((0.5 + 0 + 1) / 3)
    assert gain.after.value == pytest.approx((1 + 0.5 + 1) / 3)
    assert gain.gain.value == pytest.approx(1 / 3)
    assert gain.problems == 3
    assert gain.rollouts == [(1, 0.25), (2, 0.75)]
    assert gain_summary(gain)["steps"] == 2


def test_equal_gains_have_an_interval_of_zero_width(metrics: Path) -> None:
    """The problems differ widely in difficulty, but their paired gains are equal."""
    gain = gain_of(groups(*["wwww", "rrrw"] * 10), groups(*["wwwr", "rrrr"] * 10), metrics)
    assert (gain.gain.low, gain.gain.high) == (0.25, 0.25)
    assert gain.before.high - gain.before.low > 0.2


def test_samples_of_other_problems_are_refused(metrics: Path) -> None:
    with pytest.raises(AssertionError, match="same problems"):
        gain_of(groups("r", "w"), groups("r", "w")[::-1], metrics)
