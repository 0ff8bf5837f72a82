"""Test the status of a campaign, read from its store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcts.status import read_status, status_text
from mmprm.cli.main import main
from mmprm.trees.serialization import StoredBatch, pack_batch
from mmprm.trees.store import Finished, Store
from mmprm.types import Batch, Problem, Rollout, Steps, Verdict

R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN


def batch(problem: str, steps: Steps, first_sample: int, *verdicts: Verdict) -> StoredBatch:
    return pack_batch(
        Batch(problem, steps, first_sample, tuple(Rollout((), v, 5, "x", "no step", "time-out") for v in verdicts))
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Return a store of six problems: searched, too easy, two failed, started and untouched, on two engines for
    10 s.
    """
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(
        "mmprm.trees.session_log.time", SimpleNamespace(time=lambda: now.seconds, monotonic=lambda: now.seconds)
    )
    store = Store.create_or_open(tmp_path / "trees.sqlite", {})
    store.add_problems([Problem(f"p{i}", "?", "1") for i in range(6)])
    store.begin_session(2)
    now.seconds = 1010
    store.append(
        [
            batch("p0", (), 0, R, R, W, U),
            batch("p0", ("a",), 0, W, W, W, W),
            batch("p1", (), 0, R, R, R, R),
            batch("p4", (), 0, R, W, W, W),
        ],
        [
            Finished("p0", "done", "search budget", labels=1),
            Finished("p1", "done", "too easy"),
            Finished("p2", "failed", "no image"),
            Finished("p3", "failed", "prompt too long"),
        ],
    )
    store.close()
    reader = Store.read(tmp_path)
    yield reader
    reader.close()


def test_metrics_by_hand(store: Store) -> None:
    status = read_status(store)
    assert (status.running, status.engines, status.sessions, status.last_commit) == (False, 2, 1, 1010)
    assert status.problems == {"open": 2, "done": 2, "failed": 2}
    assert (status.share_too_easy, status.share_too_hard) == (0.5, 0.0)
    assert status.failures == {"p2": "no image", "p3": "prompt too long"}
    assert status.verdicts == {"correct": 7, "incorrect": 8, "unknown": 1}
    assert (status.rollouts_per_second, status.tokens_per_second, status.labels_per_second) == (1.6, 8.0, 0.1)
    # One label in 20 engine-seconds.
    assert status.labels_per_engine_hour == pytest.approx(180)
    # 4.5 problems took 20 engine-seconds; 1.5 are left for 2 engines.
    assert status.seconds_left == pytest.approx(1.5 * 20 / 4.5 / 2)
    assert status.projected_end is None, "no process is running it"


def test_the_projected_end_is_relative_to_the_current_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarting engines have committed nothing since the last session."""
    monkeypatch.setattr("mcts.status.is_being_written", lambda store: True)
    monkeypatch.setattr("mcts.status.time", SimpleNamespace(time=lambda: 90_000.0))
    assert read_status(store).projected_end == pytest.approx(90_000 + 1.5 * 20 / 4.5 / 2)


def test_text(store: Store) -> None:
    text = status_text(read_status(store), "runs/x", now=1075)
    assert text.splitlines() == [
        "runs/x: stopped, last commit 1:05 ago",
        "problems      2 done, 2 failed, 2 open (1 begun) of 6",
        "ended         search budget 1 (50.0%), too easy 1 (50.0%)",
        "labels        1 in 4 states, 180 per engine-hour (0.01 engine-hours)",
        "rollouts      16: 7 correct, 8 incorrect, unknown 1 (time-out 1)",
        "unsplittable  16 (no step 16)",
        "rate          1.6 rollouts/s · 0.10 labels/s · 8 tokens/s",
        "left          0:03 with 2 engines",
        "failed        p2: no image",
        "              p3: prompt too long",
        "              run mmprm retry runs/x to reopen them",
    ]


def test_labels_from_rollouts_of_other_states_are_named(tmp_path: Path) -> None:
    """Only one of p0's four labels comes from its state's own rollouts; p1 is unfinished and has only that kind."""
    writer = Store.create_or_open(tmp_path / "trees.sqlite", {})
    writer.add_problems([Problem(name, "?", "1") for name in ("p0", "p1")])
    batches = [batch(name, steps, 0, R, W) for name in ("p0", "p1") for steps in ((), ("a",))]
    writer.append(batches, [Finished("p0", "done", "rollout budget", labels=4)])
    writer.close()
    status = read_status(Store.read(tmp_path))
    assert (status.labels, status.shared_labels) == (5, 3)
    line = "labels        5 in 4 states, at least 3 of them from rollouts of other states"
    assert line in status_text(status, "runs/x").splitlines()


def test_wrapped_rows_are_indented_under_their_text(store: Store) -> None:
    status = read_status(store)
    narrow = status_text(status, "runs/x", now=1075, width=60).splitlines()
    assert narrow[2:6] == [
        "ended         search budget 1 (50.0%), too easy 1 (50.0%)",
        "labels        1 in 4 states, 180 per engine-hour (0.01",
        "              engine-hours)",
        "rollouts      16: 7 correct, 8 incorrect, unknown 1",
    ]
    assert max(map(len, narrow)) <= 60


def test_text_of_a_running_campaign_shows_the_projected_end(store: Store) -> None:
    running = replace(read_status(store), running=True, projected_end=1013.3)
    lines = status_text(running, "runs/x", now=1011).splitlines()
    assert lines[0] == "runs/x: running on 2 engines, last commit 0:01 ago"
    assert any(line.startswith("left          0:03, until ") for line in lines)


def test_a_long_list_of_failures_is_truncated(store: Store) -> None:
    status = replace(read_status(store), failures={f"q{i}": "no image" for i in range(25)})
    assert "              … and 15 more (--json has all)" in status_text(status, "runs/x").splitlines()


def test_a_store_without_any_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.create_or_open(tmp_path / "trees.sqlite", {}).close()
    assert main(["status", str(tmp_path), "--watch"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}: no engine has committed anything yet",
        "problems      0 done, 0 failed, 0 open (0 begun) of 0",
        "labels        0 in 0 states",
        "rollouts      0: 0 correct, 0 incorrect, unknown 0",
        "unsplittable  0",
    ]


def test_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(store.path.parent), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["labels_per_second"] == 0.1
    assert written["ended"] == {"search budget": 1, "too easy": 1}


def test_no_store_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "has no store; run mmprm annotate first" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [0, 1, 1000])
def test_a_file_that_is_not_a_run_store_is_rejected(
    lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some.jsonl").write_text('{"id": "p"}\n' * lines)
    assert main(["status", str(tmp_path / "some.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "is not a run store of mmprm" in said
    assert "disk" not in said
