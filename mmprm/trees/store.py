"""Store the finished batches of an annotation run in an SQLite log with one writer and any number of readers.

The writer is the run's driver. A batch is keyed by (problem, prefix of steps, index of its first sample), so appending
it twice has no effect. Each batch has a checksum, so damage raises an error and never changes a label;
mmprm.trees.repair drops damaged records.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmprm.config import differing_keys, with_current_names
from mmprm.errors import StoreError
from mmprm.files import digest_of, parse_json
from mmprm.trees.changed_problems import differing_fields
from mmprm.trees.database import STORE_NAME, Database
from mmprm.trees.serialization import (
    BATCH_COLUMNS,
    DamagedError,
    StoredBatch,
    count_verdicts,
    open_batch,
    pack_problem,
    unpack_problem,
)
from mmprm.trees.session_log import SessionLog
from mmprm.trees.summary import StoreSummary, summarize
from mmprm.types import Batch, Node, Problem, Steps, Tree

ProblemStatus = Literal["open", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Finished:
    """Holds the outcome of a search that has ended.

    `status` is "done", with the reason why the search ended and the number of labels, or "failed", with the reason for
    the failure.
    """

    problem_id: str
    status: Literal["done", "failed"]
    reason: str
    labels: int = 0


class Store:
    """Reads and writes a run store.

    Open it with `create_or_open` (one writer at a time) or `read` (any number of readers, also during a campaign).
    """

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self._database = database
        self._session_log = SessionLog(database)

    @classmethod
    def create_or_open(cls, path: str | Path, config: dict[str, Any]) -> Store:
        """Open the store as its only writer, creating it if it does not exist.

        `config` holds the settings that determine the batches. Raises StoreError if the store was created with
        different settings.
        """
        database = Database.writing(Path(path))
        store = cls(database)
        try:
            if database.is_empty():
                with database.transaction():
                    database.create_tables()
                    store._write_config(config)
            database.check_version()
            store._check_config(config)
            # In WAL mode a commit survives a killed process at any setting; FULL also survives power
            # loss. Batches are committed in groups, a few times per second, so the cost of one fsync per
            # group is negligible.
            database.run("PRAGMA journal_mode=WAL")
            database.run("PRAGMA synchronous=FULL")
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: str | Path) -> Store:
        """Open the store at `path`, a database file or a run folder, for reading."""
        path = Path(path) / STORE_NAME if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise StoreError(f"{path}: has no store; run mmprm annotate first, or give its run folder")
        database = Database.reading(path)
        database.check_version()
        return cls(database)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def fork(self, path: Path, config: dict[str, Any], keep_batches: bool) -> None:
        """Copy this store to the new file `path` with another configuration, and reopen every problem.

        With `keep_batches`, the copy keeps the batches and the sessions that sampled them, because they are also valid
        under the new configuration.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
                partial = Path(folder) / path.name
                self._copy(partial, config, keep_batches)
                os.link(partial, path)  # unlike a rename, this fails if another fork created `path` first
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be created ({error.strerror}); run the same command again, or choose another run "
                "folder"
            ) from error

    def _copy(self, path: Path, config: dict[str, Any], keep_batches: bool) -> None:
        copy = Store(Database(path))
        try:
            self._database.copy_to(copy._database)
            with copy.transaction() as run:
                copy._write_config(config)
                run("UPDATE problems SET status = 'open', reason = ''")
                for table in () if keep_batches else ("batches", "reasons", "sessions"):
                    run(f"DELETE FROM {table}")
            copy._database.run("VACUUM")
        finally:
            copy.close()

    @property
    def config(self) -> dict[str, Any]:
        """Return the configuration with which the batches were sampled."""
        value, *checksum = (row[0] for row in self.rows("SELECT value FROM config ORDER BY rowid"))
        try:
            config = parse_json(value, "the configuration", StoreError)
            if checksum not in ([], [digest_of(config)]):
                raise StoreError("its checksum does not match")
        except (StoreError, TypeError) as error:
            raise StoreError(
                f"{self.path}: the stored configuration is damaged ({error}); restore a backup, or choose another run "
                "folder"
            ) from error
        return with_current_names(config)

    def _write_config(self, config: dict[str, Any]) -> None:
        self._database.run("DELETE FROM config")
        for value in (json.dumps(config, sort_keys=True), digest_of(config)):
            self._database.run("INSERT INTO config VALUES (?)", value)

    def add_problems(self, problems: Iterable[Problem], with_extra: bool = False) -> None:
        """Add problems with the status "open" if the store does not have them yet.

        A problem with a known id must have the same content; only its image paths may change. With `with_extra`, the
        content includes the other columns of the problem's row, which must then be JSON values.
        """
        with self._database.transaction():
            for problem in problems:
                problem = problem if with_extra else replace(problem, extra={})
                content = pack_problem(problem)
                stored = self.rows("SELECT content FROM problems WHERE id = ?", problem.id)
                if not stored:
                    self._database.run("INSERT INTO problems (id, content) VALUES (?, ?)", problem.id, content)
                elif stored[0][0] != content:
                    differing = differing_fields(self.problem(problem.id), problem)
                    if differing:
                        raise StoreError(
                            f"{self.path}: problem {problem.id!r} is stored with another {differing[0]}; give the "
                            "changed problem a new id, or choose another run folder"
                        )
                    self._database.run("UPDATE problems SET content = ? WHERE id = ?", content, problem.id)

    def ids(self, status: ProblemStatus | None = None) -> list[str]:
        """Return the ids of all problems, in the order in which they were added."""
        where = "" if status is None else "WHERE status = ?"
        rows = self.rows(f"SELECT id FROM problems {where} ORDER BY number", *([] if status is None else [status]))
        return [row[0] for row in rows]

    def problem(self, problem_id: str) -> Problem:
        """Return the problem with the given id."""
        rows = self.rows("SELECT content FROM problems WHERE id = ?", problem_id)
        if not rows:
            raise StoreError(
                f"{self.path}: has no problem {problem_id!r}; list the ids with mmprm status or in its problem file"
            )
        try:
            return unpack_problem(problem_id, rows[0][0])
        except DamagedError as error:
            raise StoreError(
                f"{self.path}: problem {problem_id!r} is damaged ({error}); run mmprm annotate on this folder to read "
                "and sample it again"
            ) from error

    def problems(self, status: ProblemStatus | None = None) -> list[Problem]:
        """Return all problems, in the order in which they were added."""
        return [self.problem(problem_id) for problem_id in self.ids(status)]

    def outcome(self, problem_id: str) -> tuple[ProblemStatus, str]:
        """Return a problem's status and the reason why its search ended or failed."""
        return self.rows("SELECT status, reason FROM problems WHERE id = ?", problem_id)[0]

    def failures(self) -> dict[str, str]:
        """Map each failed problem's id to the reason why its search failed."""
        return dict(self.rows("SELECT id, reason FROM problems WHERE status = 'failed' ORDER BY number"))

    def reopen(self, problem_ids: Iterable[str]) -> None:
        """Reopen the given failed problems, keeping their batches."""
        with self._database.transaction():
            for problem_id in problem_ids:
                self._database.run(
                    "UPDATE problems SET status = 'open', reason = '' WHERE id = ? AND status = 'failed'", problem_id
                )

    def begin_session(self, engines: int) -> None:
        """Start a session with `engines` running engines; each `append` then updates the session's last commit time."""
        self._session_log.begin(engines)

    def set_engines(self, engines: int) -> None:
        """Record that the number of running engines has changed to `engines`; engine-hours are computed from it."""
        with self._database.transaction():
            self._session_log.set_engines(engines)

    def append(self, batches: Sequence[StoredBatch], finished: Sequence[Finished] = ()) -> None:
        """Commit the batches and outcomes in one transaction. On StoreError, the store is unchanged."""
        reasons: Counter[tuple[str, str]] = Counter()
        with self._database.transaction():
            for batch in batches:
                if self._insert(batch):
                    reasons.update(batch.reasons)
            for (kind, reason), count in reasons.items():
                self._database.run(
                    "INSERT INTO reasons VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                    *(kind, reason, count),
                )
            for end in finished:
                self._database.run(
                    "UPDATE problems SET status = ?, reason = ?, labels = ? WHERE id = ?",
                    *(end.status, end.reason, end.labels, end.problem_id),
                )
            self._session_log.touch()

    def batches(self, problem_id: str) -> list[Batch]:
        """Return the batches of a problem, in the order in which they were appended."""
        rows = self.rows(
            f"SELECT {BATCH_COLUMNS} FROM batches WHERE problem = (SELECT number FROM problems WHERE id = ?) "
            "ORDER BY number",
            problem_id,
        )
        return [self._batch(StoredBatch.of_row(problem_id, row)) for row in rows]

    def _batch(self, packed: StoredBatch) -> Batch:
        try:
            return open_batch(packed)
        except DamagedError as error:
            raise StoreError(
                f"{self.path}: {packed.name} is damaged ({error}); run mmprm annotate on this folder to sample it again"
            ) from error

    def tree(self, problem_id: str) -> Tree:
        """Return the search tree of one problem."""
        sampled: dict[Steps, list[Batch]] = {}
        for batch in self.batches(problem_id):
            sampled.setdefault(batch.steps, []).append(batch)
        return Tree(problem_id, tuple(_node(steps, batches) for steps, batches in sampled.items()))

    def trees(self) -> Iterator[Tree]:
        """Yield the tree of every problem that has at least one batch, including unfinished problems."""
        rows = self.rows("SELECT id FROM problems WHERE number IN (SELECT problem FROM batches) ORDER BY number")
        return (self.tree(row[0]) for row in rows)

    def summary(self) -> StoreSummary:
        """Return the totals of the store."""
        return summarize(self._database)

    def _insert(self, batch: StoredBatch) -> bool:
        counts = batch.counts
        cursor = self._database.run(
            "INSERT INTO batches (problem, state, depth, first_draw, correct, incorrect, unknown, tokens, rollouts) "
            "SELECT number, ?, ?, ?, ?, ?, ?, ?, ? FROM problems WHERE id = ? ON CONFLICT DO NOTHING",
            *(batch.state, batch.depth, batch.first_sample, counts.correct, counts.incorrect, counts.unknown),
            *(batch.token_count, batch.rollouts, batch.problem_id),
        )
        return cursor.rowcount == 1

    def _check_config(self, config: dict[str, Any]) -> None:
        differing = differing_keys(self.config, config)
        if differing:
            shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
            raise StoreError(
                f"{self.path}: was written with another configuration: {shown}; restore these settings, continue in a "
                "copy with mmprm annotate --fork, or choose another run folder"
            )

    def rows(self, sql: str, *values: Any) -> list[tuple]:
        """Run a query and return all its rows."""
        return self._database.rows(sql, *values)

    def transaction(self) -> AbstractContextManager[Callable[..., sqlite3.Cursor]]:
        """Run a transaction to repair or replace trees: yield a function that executes statements, and commit all of
        them or none."""
        return self._database.transaction()


def _node(steps: Steps, batches: list[Batch]) -> Node:
    batches = sorted(batches, key=lambda batch: batch.first_sample)
    counts = tuple(count_verdicts(batch.rollouts) for batch in batches)
    return Node(steps, counts, tuple(rollout for batch in batches for rollout in batch.rollouts))
