"""Test a run store that is damaged, in a read-only folder, or without checksums."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mmprm.errors import StoreError
from mmprm.trees.repair import check_structure, repair
from mmprm.trees.serialization import pack_batch
from mmprm.trees.store import Finished, Store
from mmprm.types import Batch, ImageRef, Problem, Rollout, Tree, Verdict

CONFIG = {"search": {"rollouts": 16}, "seed": 0}
PROBLEMS = [Problem(f"p{n}", f"What is {n} and {n}?", str(2 * n)) for n in range(6)]


def batches(problem: Problem) -> list[Batch]:
    rng = random.Random(problem.id)

    def rollout() -> Rollout:
        steps = tuple(f"step {rng.random()}" for _ in range(3))
        return Rollout(steps, rng.choice([Verdict.CORRECT, Verdict.INCORRECT]), 9, "".join(steps), None, "exact")

    roots = Batch(problem.id, (), 0, tuple(rollout() for _ in range(4)))
    return [roots, *(Batch(problem.id, roots.rollouts[0].steps[:depth], 0, (rollout(),)) for depth in (1, 2))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = Store.create_or_open(tmp_path / "run" / "trees.sqlite", CONFIG)
    store.add_problems(PROBLEMS)
    for problem in PROBLEMS:
        packed = [pack_batch(batch) for batch in batches(problem)]
        store.append(packed, [Finished(problem.id, "done", "searched", 2)])
    store.close()
    return store.path


def read(path: Path) -> list[tuple[Problem, Tree]]:
    store = Store.read(path)
    try:
        check_structure(store)
        return [(store.problem(tree.problem_id), tree) for tree in store.trees()]
    finally:
        store.close()


def mended(path: Path) -> list[tuple[str, str, int]]:
    store = Store.create_or_open(path, CONFIG)
    try:
        repair(store)
        store.add_problems(PROBLEMS)
        return [(name, store.outcome(name)[0], len(store.batches(name))) for name in store.ids()]
    finally:
        store.close()


def test_damage_is_always_an_error(path: Path, tmp_path: Path) -> None:
    whole, content, rng = read(path), path.read_bytes(), random.Random(0)
    told = 0
    for case in range(60):
        damaged = bytearray(content)
        for position in rng.sample(range(len(content)), 5):
            damaged[position] ^= 1 << rng.randrange(8)
        copy = tmp_path / f"{case}.sqlite"
        copy.write_bytes(damaged)
        try:
            assert read(copy) == whole
        except StoreError:
            told += 1
        try:
            mended(copy)
            assert all(pair in whole or len(pair[1].nodes) < 3 for pair in read(copy))
        except StoreError:
            pass
    assert told > 20


def test_a_damaged_batch_is_dropped_and_its_problem_reopened(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE batches SET correct = 3, incorrect = 1 WHERE number = 4")
        connection.execute("UPDATE batches SET problem = 1 WHERE number = 8")
    connection.close()
    with pytest.raises(StoreError, match="the batch after 1 step from sample 0 of problem 'p0' is damaged"):
        read(path)
    assert mended(path)[:3] == [("p0", "open", 3), ("p1", "open", 2), ("p2", "open", 2)]
    assert "the batch of whole solutions from sample 0 of problem 'p1' is damaged" in capsys.readouterr().err


def test_a_damaged_problem_is_read_again(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE problems SET id = 'q3' WHERE id = 'p3'")
    connection.close()
    with pytest.raises(StoreError, match="problem 'q3' is damaged"):
        read(path)
    assert mended(path)[-2:] == [("p5", "done", 3), ("p3", "open", 0)]


def test_a_store_without_checksums_is_read_and_checked_by_its_content(path: Path) -> None:
    whole = read(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE batches SET rollouts = substr(rollouts, 1, length(rollouts) - 14)")
        connection.execute("UPDATE problems SET content = substr(content, 1, length(content) - 14)")
        connection.execute("DELETE FROM config WHERE rowid = 2")
    assert read(path) == whole
    assert mended(path)[0] == ("p0", "done", 3)
    with connection:
        connection.execute("UPDATE batches SET incorrect = incorrect + 1 WHERE number = 1")
    connection.close()
    with pytest.raises(StoreError, match="its content does not match its columns"):
        read(path)


def test_a_problem_keeps_its_image(tmp_path: Path) -> None:
    store = Store.create_or_open(tmp_path / "trees.sqlite", CONFIG)
    (tmp_path / "a.png").write_bytes(b"one")
    store.add_problems([Problem("p", "?", "1", (ImageRef(data=b"one"),))])
    store.add_problems([Problem("p", "?", "1", (ImageRef(path=str(tmp_path / "a.png")),))])
    with pytest.raises(StoreError, match="stored with another image"):
        store.add_problems([Problem("p", "?", "1", (ImageRef(data=b"two"),))])
    store.close()


READ = """
import os, sys
from mmprm.trees.store import Store
if os.getuid() == 0:
    os.setuid(65534)
store = Store.read(sys.argv[1])
print(len(list(store.trees())), store.config["seed"])
store.close()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_store_is_read_in_a_folder_that_cannot_be_written(path: Path, killed: bool) -> None:
    folder = Path("/tmp") / f"mmprm-read-only-{os.getpid()}"  # a path that other users can read
    if killed:  # its write-ahead log is not merged
        store = Store.create_or_open(path, CONFIG)
        store.append([], [Finished("p0", "done", "too easy")])
        shutil.copytree(path.parent, folder, ignore=shutil.ignore_patterns("*-shm"))
        store.close()
    else:
        shutil.copytree(path.parent, folder)
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    try:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(
            [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, env=environment, cwd="/"
        )
        assert done.stdout == "6 0\n", done.stderr
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_clock_set_back_subtracts_no_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcts.status import read_status

    times = iter([5000.0, 100.0, 100.0])
    monkeypatch.setattr("mmprm.trees.session_log.time.time", lambda: next(times))
    store = Store.create_or_open(path, CONFIG)
    store.begin_session(1)
    store.append([pack_batch(Batch("p0", ("new",), 0, batches(PROBLEMS[0])[0].rollouts))])
    assert 0 <= read_status(store).engine_hours < 1 / 360
    store.close()


def test_an_invalid_schema_version_names_the_store(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE batches", b"CREATE TABLE\x84batches"))
    for opened in (read, mended):
        with pytest.raises(StoreError, match=r"trees\.sqlite: .*(restore a copy|check the disk)"):
            opened(path)
