"""Drop damaged records from a run store, so that the annotation run samples them again."""

from __future__ import annotations

import sys

from mmprm.errors import StoreError
from mmprm.trees.serialization import BATCH_COLUMNS, DamagedError, StoredBatch, check_batch, unpack_problem
from mmprm.trees.store import Store


def check_structure(store: Store) -> None:
    """Raise StoreError if the structure of the database is damaged.

    Queries would not notice that rows are missing or mixed up.
    """
    (found,) = store.rows("PRAGMA integrity_check(1)")[0]
    if found != "ok":
        raise StoreError(
            f"{store.path}: the database is damaged ({' '.join(str(found).split())}); mmprm annotate with this run "
            "mends what can be mended; else restore a copy"
        )


def repair(store: Store) -> None:
    """Report and drop the damaged batches and problems of a store that is open for writing.

    The affected problems are reopened and keep their other batches. Raises StoreError if the database itself cannot be
    repaired.
    """
    try:
        check_structure(store)
    except StoreError:
        with store.transaction() as run:
            run("REINDEX")
        check_structure(store)
        print(f"{store.path}: its indexes were damaged and are made anew", file=sys.stderr, flush=True)
    owners = _intact_problems(store)
    damaged = []
    for (owner,) in store.rows("SELECT DISTINCT problem FROM batches"):  # one problem's batches fit in memory
        for number, *row in store.rows(f"SELECT number, {BATCH_COLUMNS} FROM batches WHERE problem = ?", owner):
            packed = StoredBatch.of_row(owners.get(owner, "of an unknown name"), tuple(row))
            try:
                check_batch(packed)
            except DamagedError as error:
                damaged.append(number)
                _say(store, f"{packed.name} is damaged ({error}) and will be sampled again")
    with store.transaction() as run:
        run("UPDATE problems SET status = 'open', reason = '' WHERE status NOT IN ('open', 'done', 'failed')")
        for number in damaged:
            run("DELETE FROM batches WHERE number = ?", number)
        if damaged:
            # A damaged batch may belong to another problem than the one it names, so reopen all. Intact batches are not
            # sampled again.
            run("UPDATE problems SET status = 'open', reason = '' WHERE status = 'done'")


def _intact_problems(store: Store) -> dict[int, str]:
    """Map the row number of each intact problem to its id, and drop the damaged problems.

    Dropped problems can be read again from the problem files.
    """
    intact, damaged = {}, []
    for number, problem_id, content in store.rows("SELECT number, id, content FROM problems"):
        try:
            unpack_problem(problem_id, content)
            intact[number] = problem_id
        except DamagedError as error:
            damaged.append(number)
            _say(store, f"problem {problem_id!r} is damaged ({error}); it will be read and sampled again")
    with store.transaction() as run:
        for number in damaged:
            run("DELETE FROM batches WHERE problem = ?", number)
            run("DELETE FROM problems WHERE number = ?", number)
    return intact


def _say(store: Store, message: str) -> None:
    print(f"{store.path}: {message}", file=sys.stderr, flush=True)
