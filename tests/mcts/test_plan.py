"""Test the estimate of a campaign from a pilot run: worked numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mcts.plan import estimate_campaign, plan_text
from mmprm.cli.main import main
from mmprm.errors import DataError
from mmprm.metrics import Interval
from mmprm.trees.serialization import pack_batch
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Finished, ProblemStatus, Store
from mmprm.trees.tallies import ProblemTally
from mmprm.types import Batch, Problem, Rollout, Verdict


def tally(labels: int, status: ProblemStatus = "done") -> ProblemTally:
    return ProblemTally("p", status, "", labels + 1, labels, 10 * labels, 100 * labels, 50 * labels)


def test_means_times_problems_by_hand() -> None:
    # 120 labels took 12,000 tokens and 100 engine-seconds: 120 tokens per second per engine.
    expected = estimate_campaign([tally(20), tally(40), tally(60)], engine_seconds=100, store_bytes=12_000, problems=30)
    assert (expected.labels.value, expected.rollouts.value, expected.tokens.value) == (1200, 12_000, 120_000)
    assert expected.tokens_per_engine_second == 120
    assert expected.engine_hours is not None
    assert expected.engine_hours.value == pytest.approx(1000 / 3600)
    # The file is twice as large as the compressed records in it.
    assert expected.store_bytes.value == pytest.approx(120_000)
    hours = expected.wall_hours(4)
    assert hours is not None
    assert hours.value == pytest.approx(250 / 3600)
    # The smallest and largest mean that a resample of three can have.
    assert (expected.labels.low, expected.labels.high) == (pytest.approx(600), pytest.approx(1800))


def test_the_interval_narrows_with_the_pilot() -> None:
    small = estimate_campaign([tally(20), tally(60)] * 5, 1, 1, problems=100).labels
    large = estimate_campaign([tally(20), tally(60)] * 50, 1, 1, problems=100).labels
    assert small.value == large.value == 4000
    # Standard error of the mean: 20 / sqrt(100) labels per problem.
    assert large.high - large.low == pytest.approx(2 * 1.96 * 2 * 100, rel=0.1)
    assert small.high - small.low == pytest.approx(2 * 1.96 * 20 / 10**0.5 * 100, rel=0.15)
    assert estimate_campaign([tally(7)] * 9, 1, 1, problems=10).labels == Interval(70, 70, 70)


def test_open_problems_are_left_out_and_their_time_is_not() -> None:
    expected = estimate_campaign(
        [tally(20), tally(20), tally(5, "open")], engine_seconds=45, store_bytes=1, problems=10
    )
    assert (expected.pilot_problems, expected.pilot_open, expected.labels.value) == (2, 1, 200)
    assert expected.tokens_per_engine_second == 100
    assert "1 problems of the pilot are still open" in plan_text(expected, "runs/pilot", None)


def test_failed_problems_cost_and_give_little() -> None:
    assert estimate_campaign([tally(20), tally(0, "failed")], 1, 1, problems=10).labels.value == 100


def test_a_pilot_that_is_too_small_is_rejected() -> None:
    with pytest.raises(DataError, match="1 problems of the pilot have ended, must be at least 2"):
        estimate_campaign([tally(20), tally(20, "open")], 1, 1, problems=10)


def test_a_pilot_without_time_gives_no_hours() -> None:
    text = plan_text(estimate_campaign([tally(20)] * 2, 0, 1, problems=10), "runs/pilot", 4)
    assert "hours" not in text
    assert "The pilot recorded no engine time." in text


@pytest.fixture
def pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run of two problems. Each has a state below the root, and a prefix b that all correct root rollouts
    share.
    """
    now = SimpleNamespace(seconds=0.0)
    clock = SimpleNamespace(time=lambda: now.seconds, monotonic=lambda: now.seconds)
    monkeypatch.setattr("mmprm.trees.session_log.time", clock)
    rule = StoppingRule(rollouts=4, min_shared_rollouts=3).model_dump()
    store = Store.create_or_open(tmp_path / "trees.sqlite", {"search": rule, "step_format": "blank_lines"})
    store.add_problems([Problem(name, "?", "1") for name in "pq"])
    store.begin_session(2)
    now.seconds = 8.0
    for name in "pq":
        correct = Rollout(("b", "c"), Verdict.CORRECT, 25, "bc")
        incorrect = Rollout(("a", "c"), Verdict.INCORRECT, 25, "ac")
        last = Rollout(("c",), Verdict.INCORRECT, 25, "c")
        batches = [Batch(name, (), 0, (correct, correct, correct, incorrect)), Batch(name, ("a",), 0, (last,) * 4)]
        store.append(map(pack_batch, batches), [Finished(name, "done", "no candidates left", labels=2)])
    store.close()
    return tmp_path


def test_command(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "annotate", "--pilot", str(pilot), "--problems", "14400", "--engines", "64"]
    assert main(asked) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:6] == [
        f"Estimate for 14,400 problems from 2 problems of {pilot}",
        "labels 28,800 (28,800 to 28,800)",
        "rollouts 115,200 (115,200 to 115,200)",
        "tokens 2,880,000 (2,880,000 to 2,880,000)",
        # 400 tokens in 16 engine-seconds
        "engine-hours 32.00 (32.00 to 32.00)",
        "hours, 64 engines 0.50 (0.50 to 0.50)",
    ]
    assert "engine-hours treats the pilot's rate of 25 tokens per second per engine as exact" in lines[-2]
    assert main([*asked[:-1], "0"]) == 2
    assert "--engines=0 must be at least 1" in capsys.readouterr().err
