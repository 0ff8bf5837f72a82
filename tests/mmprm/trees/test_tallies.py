from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmprm.cli.main import main
from mmprm.errors import StoreError
from mmprm.trees.serialization import StoredBatch, pack_batch
from mmprm.trees.store import Finished, Store
from mmprm.trees.tallies import (
    ProblemTally,
    SampledCounts,
    Session,
    begun,
    is_being_written,
    sampled_after,
    sessions,
    tallies,
)
from mmprm.types import Batch, Problem, Rollout, Steps, Verdict

R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
CONFIG = {"search": {"rollouts": 2, "max_rollouts": 8}, "step_format": "tags", "seed": 0}


def batch(problem: str, steps: Steps, first_sample: int, *verdicts: Verdict) -> StoredBatch:
    return pack_batch(
        Batch(problem, steps, first_sample, tuple(Rollout(("x", "y"), v, 5, "xy", None, "exact") for v in verdicts))
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(
        "mmprm.trees.session_log.time", SimpleNamespace(time=lambda: now.seconds, monotonic=lambda: now.seconds)
    )
    return now


@pytest.fixture
def store(tmp_path: Path, clock: SimpleNamespace) -> Iterator[Store]:
    """Return a store with two sessions: two engines for 10 s, then one engine for 4 s."""
    opened = Store.create_or_open(tmp_path / "run" / "trees.sqlite", CONFIG)
    opened.add_problems([Problem(f"p{i}", f"question {i}", str(i)) for i in range(1, 6)])
    clock.seconds = 1000
    opened.begin_session(2)
    clock.seconds = 1006
    opened.append([batch("p1", (), 0, R, W), batch("p1", ("a",), 0, U, U)], [Finished("p3", "failed", "no image")])
    clock.seconds = 1010
    opened.append([batch("p2", (), 0, R, R), batch("p4", (), 0, R, W)], [Finished("p2", "done", "too easy")])
    clock.seconds = 2000
    opened.begin_session(1)
    clock.seconds = 2004
    opened.append(
        [batch("p1", ("a",), 2, W, W), batch("p1", ("a", "b"), 0, W, W)], [Finished("p1", "done", "budget", labels=3)]
    )
    yield opened
    opened.close()


def test_a_session_lasts_from_the_first_engine_to_the_last_commit(store: Store) -> None:
    assert sessions(store) == [Session(1000, 1010, 2, 0, 20), Session(2000, 2004, 1, 4, 4)]
    assert [session.seconds for session in sessions(store)] == [10, 4]


def test_engine_time_counts_each_engine_from_its_start_to_its_end(tmp_path: Path, clock: SimpleNamespace) -> None:
    """One engine runs alone for 10 s, three for 10 s, and the remaining two for 4 s."""
    store = Store.create_or_open(tmp_path / "trees.sqlite", CONFIG)
    store.add_problems([Problem("p", "?", "1")])
    clock.seconds = 1000
    store.begin_session(1)
    clock.seconds = 1005
    store.append([batch("p", (), 0, R, W)])
    clock.seconds = 1010
    store.set_engines(3)
    clock.seconds = 1020
    store.set_engines(2)
    clock.seconds = 1024
    store.append([batch("p", ("a",), 0, R, W)])
    assert sessions(store) == [Session(1000, 1024, 2, 0, engine_seconds=10 + 30 + 8)]
    store.close()


def test_without_a_session_a_commit_notes_no_time(tmp_path: Path) -> None:
    store = Store.create_or_open(tmp_path / "trees.sqlite", CONFIG)
    store.append([])
    assert sessions(store) == []
    store.close()


def test_sampled_after_a_batch(store: Store) -> None:
    assert sampled_after(store, 0) == SampledCounts(rollouts=12, tokens=60)
    assert sampled_after(store, 4) == SampledCounts(rollouts=4, tokens=20)
    assert sampled_after(store, 6) == SampledCounts(0, 0)


def test_tallies_by_problem(store: Store) -> None:
    found = tallies(store)
    assert [(t.problem_id, t.status, t.reason) for t in found] == [
        ("p1", "done", "budget"),
        ("p2", "done", "too easy"),
        ("p3", "failed", "no image"),
        ("p4", "open", ""),
        ("p5", "open", ""),
    ]
    assert [(t.states, t.labels, t.rollouts, t.tokens) for t in found] == [
        (3, 3, 8, 40),
        (1, 0, 2, 10),
        (0, 0, 0, 0),
        (1, 0, 2, 10),
        (0, 0, 0, 0),
    ]
    assert found[0].bytes > found[1].bytes > found[2].bytes > 0
    assert isinstance(found[0], ProblemTally)
    assert begun(store) == 1


def test_forks_keep_valid_problems_and_batches(store: Store, tmp_path: Path) -> None:
    other = {**CONFIG, "seed": 1}
    store.fork(tmp_path / "all" / "trees.sqlite", other, keep_batches=True)
    store.fork(tmp_path / "none" / "trees.sqlite", other, keep_batches=False)
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["trees.sqlite"]
    for name in ("all", "none"):
        copy = Store.create_or_open(tmp_path / name / "trees.sqlite", other)
        assert copy.ids("open") == store.ids()
        assert copy.problems() == store.problems()
        kept = name == "all"
        assert copy.batches("p1") == (store.batches("p1") if kept else [])
        assert len(sessions(copy)) == (2 if kept else 0)
        assert copy.summary().unknown_reasons == ({"exact": 2} if kept else {})
        copy.close()
    assert store.config == CONFIG
    assert store.ids("done") == ["p1", "p2"]


def test_the_later_of_two_concurrent_forks_is_rejected(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second fork starts when the first has copied everything but not yet put the copy in place."""
    path, link = tmp_path / "new" / "trees.sqlite", os.link

    def fork_another_first(copy: str | Path, target: str | Path) -> None:
        monkeypatch.setattr(os, "link", link)
        store.fork(path, {**CONFIG, "seed": 1}, keep_batches=True)
        link(copy, target)

    monkeypatch.setattr(os, "link", fork_another_first)
    with pytest.raises(StoreError, match=r"new/trees\.sqlite: cannot be created \(File exists\); run the same command"):
        store.fork(path, {**CONFIG, "seed": 2}, keep_batches=False)
    assert [entry.name for entry in path.parent.iterdir()] == ["trees.sqlite"]
    made = Store.read(path)
    assert (made.config["seed"], made.batches("p1")) == (1, store.batches("p1"))
    made.close()


def test_a_fork_that_cannot_be_written_says_so(store: Store, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be created \((File exists|Not a directory)\)"):
        store.fork(tmp_path / "new" / "trees.sqlite", CONFIG, keep_batches=True)


def test_another_process_sees_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "trees.sqlite"
    code = (
        f"from mmprm.trees.store import Store; Store.create_or_open({str(path)!r}, {{}}); print(1, flush=True); input()"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"1\n"
        store = Store.read(path)
        assert is_being_written(store)
        writer.kill()
        writer.wait()
        assert not is_being_written(store)
        store.close()
    finally:
        writer.kill()


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    store = Store.create_or_open(tmp_path / "run" / "trees.sqlite", CONFIG)
    store.add_problems([Problem(name, f"question {name}", "1") for name in "abcd"])
    reasons = {"a": "a.png cannot be read", "b": "prompt too long", "c": "c.png cannot be read"}
    store.append(
        [batch("a", (), 0, R, W)],
        [Finished(name, "failed", reason) for name, reason in reasons.items()] + [Finished("d", "done", "too hard")],
    )
    store.close()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("arguments", "opened"),
    [([], "abc"), (["--match", "CANNOT be"], "ac"), (["b"], "b"), (["a", "b", "--match", "read"], "a")],
)
def test_retry_opens_failed_problems(
    failed: Path, arguments: list[str], opened: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retry", str(failed), *arguments]) == 0
    store = Store.read(failed)
    assert store.ids("open") == list(opened)
    assert store.ids("done") == ["d"]
    assert len(store.batches("a")) == 1, "sampled batches are kept"
    store.close()
    said = capsys.readouterr().out
    assert said.startswith(f"{len(opened)} problem{'s' if len(opened) > 1 else ''} reopened")
    assert f"{3 - len(opened)} still failed" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d"], "d is not a failed problem"),
        (["--match", "memory"], "none of the 3 failed problems has a reason that contains"),
    ],
)
def test_retry_of_nothing_is_an_error(
    failed: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retry", str(failed), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_store_of_schema_1_is_refused(store: Store) -> None:
    store._database.run("PRAGMA user_version=1")
    with pytest.raises(
        StoreError, match=r"schema version 1 must be 2 \(version 2 added the working hours of engines\)"
    ):
        Store.read(store.path)
