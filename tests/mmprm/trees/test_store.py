from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprm.errors import StoreError
from mmprm.trees.serialization import pack_batch, unpack_batch
from mmprm.trees.store import Finished, Store
from mmprm.types import Batch, Counts, ImageRef, Node, Problem, Rollout, Steps, Tree, Verdict

CONFIG = {"search": {"rollouts": 16, "alpha": 0.5}, "seed": 0}
PROBLEM = Problem("p", "How many?", "3", (ImageRef(data=b"\x89PNG\x00"), ImageRef(path="a/b.png")), ("A", "B"), "count")
R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN


def rollout(verdict: Verdict, *steps: str) -> Rollout:
    return Rollout(steps, verdict, 7, "".join(steps), None, "exact")


CUT = Rollout((), U, 5, "<step>né\ud800…", "unclosed step", "time-out")


def batch(problem: str, steps: Steps, first_sample: int, *rollouts: Rollout) -> Batch:
    return Batch(problem, steps, first_sample, rollouts)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.create_or_open(tmp_path / "run" / "trees.sqlite", CONFIG)
    opened.add_problems([PROBLEM, Problem("q", "And now?", "4")])
    yield opened
    opened.close()


LOG = [
    batch("p", (), 0, rollout(R, "a", "b"), rollout(W, "c", "d")),
    batch("q", (), 0, CUT),
    batch("p", ("a",), 0, rollout(W, "e"), CUT),
    batch("p", ("ab",), 0, CUT),
    batch("p", ("a", "b"), 0, rollout(R, "f")),
    batch("p", ("a",), 2, rollout(R, "g")),
]
PACKED = [pack_batch(entry) for entry in LOG]


def test_problems_round_trip(store: Store) -> None:
    assert store.problems() == [PROBLEM, Problem("q", "And now?", "4")]
    store.append([], [Finished("q", "failed", "a.png is missing")])
    assert (store.ids("open"), store.ids("failed")) == (["p"], ["q"])
    assert store.failures() == {"q": "a.png is missing"}


def test_a_known_id_keeps_its_question_but_images_may_move(store: Store) -> None:
    moved = Problem("p", "How many?", "3", (ImageRef(path="c.png"),), ("A", "B"))
    store.add_problems([moved])
    assert store.problem("p") == moved
    with pytest.raises(StoreError, match="problem 'p' is stored with another answer"):
        store.add_problems([Problem("new", "x", "y"), Problem("p", "How many?", "5", (), ("A", "B"))])
    assert store.ids() == ["p", "q"]


def test_a_tree_keeps_the_order_of_states_and_rollouts(store: Store) -> None:
    store.append(PACKED[:3])
    store.append(PACKED[3:])
    assert store.batches("p") == [entry for entry in LOG if entry.problem_id == "p"]
    tree = Tree(
        "p",
        (
            Node((), (Counts(1, 1),), LOG[0].rollouts),
            Node(("a",), (Counts(0, 1, 1), Counts(1, 0)), (rollout(W, "e"), CUT, rollout(R, "g"))),
            Node(("ab",), (Counts(0, 0, 1),), (CUT,)),
            Node(("a", "b"), (Counts(1, 0),), (rollout(R, "f"),)),
        ),
    )
    assert store.tree("p") == tree
    assert list(store.trees()) == [tree, Tree("q", (Node((), (Counts(0, 0, 1),), (CUT,)),))]


def test_summary_by_hand(store: Store) -> None:
    store.append(PACKED)
    # States: two roots, a, ab, and (a, b). Labels: a and (a, b), as ("ab",) has no verdict and roots have no step.
    assert (store.summary().states, store.summary().labels) == (5, 2)
    store.append([], [Finished("p", "done", "too easy", labels=3)])
    summary = store.summary()
    assert summary.problems == {"open": 1, "done": 1, "failed": 0}
    assert summary.ended == {"too easy": 1}
    assert (summary.states, summary.labels) == (5, 3)
    assert (summary.counts, summary.rollouts) == (Counts(3, 2, 3), 8)
    assert summary.tokens == 5 * 7 + 3 * 5
    assert summary.unknown_reasons == {"time-out": 3}
    assert summary.unsplit_reasons == {"unclosed step": 3}


def test_appending_again_changes_nothing(store: Store) -> None:
    store.append(PACKED)
    before = store.summary()
    store.append(PACKED[2:5])
    assert store.summary() == before
    assert len(store.batches("p")) == 5


def test_batches_pack_without_loss() -> None:
    for entry in LOG:
        assert unpack_batch(entry.problem_id, entry.first_sample, pack_batch(entry).rollouts) == entry


def test_another_configuration_is_refused_with_its_keys(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError) as caught:
        Store.create_or_open(store.path, {"search": {"rollouts": 8, "alpha": 0.5}, "seed": 0, "step_format": "tags"})
    assert "search.rollouts (stored 16, asked 8), step_format (stored None, asked 'tags');" in str(caught.value)
    Store.create_or_open(store.path, CONFIG).close()


def test_another_version_is_refused(store: Store) -> None:
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="schema version 99 must be 2"):
        Store.create_or_open(store.path, CONFIG)
    with pytest.raises(StoreError, match="schema version 99 must be 2"):
        Store.read(store.path)


def test_other_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no store"):
        Store.read(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database " * 100)
    with pytest.raises(StoreError, match="is not a run store of mmprm"):
        Store.create_or_open(tmp_path / "text.sqlite", CONFIG)
    foreign = sqlite3.connect(tmp_path / "foreign.sqlite")
    foreign.execute("CREATE TABLE x (y)")
    foreign.close()
    with pytest.raises(StoreError, match="is not a run store"):
        Store.create_or_open(tmp_path / "foreign.sqlite", CONFIG)


def test_a_reader_sees_committed_data_and_writes_nothing(store: Store) -> None:
    store.append(PACKED)
    reader = Store.read(store.path)
    assert reader.tree("p") == store.tree("p")
    assert reader.config == CONFIG
    with pytest.raises(StoreError, match="readonly"):
        reader.append([], [Finished("p", "done", "")])
    reader.close()


def test_a_full_disk_is_reported_and_loses_nothing(store: Store) -> None:
    store.append(PACKED)
    # SQLite reports a file at its page limit just as it reports a full disk.
    pages = store.rows("PRAGMA page_count")[0][0]
    store._database.run(f"PRAGMA max_page_count={pages}")
    noise = random.Random(0)
    big = [
        batch("q", (str(i),), 0, rollout(W, "".join(chr(noise.randrange(0x4E00, 0x9FFF)) for _ in range(9000))))
        for i in range(9)
    ]
    with pytest.raises(StoreError, match=r"database or disk is full; free some space and run the same command again"):
        store.append(map(pack_batch, big), [Finished("p", "done", "")])
    assert (store.ids("done"), len(store.batches("p")), len(store.batches("q"))) == ([], 5, 1)
    store._database.run("PRAGMA max_page_count=100000")
    store.append(map(pack_batch, big))
    assert len(store.batches("q")) == 10


def test_a_second_driver_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    """The first driver also has a forked child that outlives it, like a grading process."""
    path = tmp_path / "trees.sqlite"
    code = (
        "import os, sys, time; from mmprm.trees.store import Store\n"
        f"store = Store.create_or_open({str(path)!r}, {CONFIG!r})\n"
        "pid = os.fork()\n"
        "if pid: print(pid, flush=True)\n"
        "time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    child = int(first.stdout.readline())
    try:
        with pytest.raises(StoreError, match="another campaign is writing to this store"):
            Store.create_or_open(path, CONFIG)
        first.kill()
        first.wait()
        Store.create_or_open(path, CONFIG).close()
    finally:
        first.kill()
        os.kill(child, signal.SIGKILL)
