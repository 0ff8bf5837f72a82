"""The run store of a campaign: a log of finished batches in SQLite, written by one driver, read by anyone.

A batch is keyed by (problem, prefix of steps, first draw), so appending it again changes nothing. Each has a checksum,
so that damage is an error and never another label; mmprm.trees.repair drops what is damaged.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmprm.data.images import image_bytes
from mmprm.errors import DataError, StoreError
from mmprm.files import digest_of, parse_json
from mmprm.trees.records import DamagedError, PackedBatch, count_verdicts, open_batch, pack_problem, unpack_problem
from mmprm.types import Batch, Counts, Node, Picture, Problem, Steps, Tree

STORE_NAME = "trees.sqlite"
"""Of the store in a run folder."""

SCHEMA_VERSION = 2
"""2 has the sessions, which 1 had not."""

_APPLICATION_ID = 0x4D4D5052
_NO_STORE = "is not a run store of mmprm; choose another run folder"

Status = Literal["open", "done", "failed"]

_SCHEMA = """
CREATE TABLE config (value TEXT NOT NULL);
CREATE TABLE problems (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, content BLOB NOT NULL,
    status TEXT NOT NULL DEFAULT 'open', reason TEXT NOT NULL DEFAULT '', labels INTEGER NOT NULL DEFAULT 0);
CREATE INDEX problems_by_status ON problems (status);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY, problem INTEGER NOT NULL REFERENCES problems, state BLOB NOT NULL,
    depth INTEGER NOT NULL, first_draw INTEGER NOT NULL, correct INTEGER NOT NULL, incorrect INTEGER NOT NULL,
    unknown INTEGER NOT NULL, tokens INTEGER NOT NULL, rollouts BLOB NOT NULL,
    UNIQUE (problem, state, first_draw));
CREATE TABLE reasons (
    kind TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (kind, reason)) WITHOUT ROWID;
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY, began REAL NOT NULL, last REAL NOT NULL, engines INTEGER NOT NULL,
    batches_before INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A problem whose search ended: "done" with how it ended and its number of labels, or "failed" with what went
    wrong."""

    problem_id: str
    status: Literal["done", "failed"]
    reason: str
    labels: int = 0


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a store holds. `labels` counts the distinct non-terminal labels of problems that are done, and of others the
    states with a known verdict so far. Reason tables map a reason to its count."""

    problems: dict[str, int]
    ended: dict[str, int]
    states: int
    labels: int
    counts: Counts
    tokens: int
    unknown_reasons: dict[str, int]
    unsplit_reasons: dict[str, int]

    @property
    def rollouts(self) -> int:
        return self.counts.known + self.counts.unknown


class Store:
    """Open with `create_or_open` (the one writer) or `read` (any number, also while a campaign runs)."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._session: int | None = None
        self._session_began = (0.0, 0.0)
        """Its time of day, and the clock that nobody sets."""
        self._copy_folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def create_or_open(cls, path: str | Path, config: dict[str, Any]) -> Store:
        """Become the one writer. `config` holds what decides the batches: a store of another one is refused."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error.strerror}); choose another run folder") from error
        store = cls(path, _connect(path), lock)
        try:
            if not store.rows("SELECT 1 FROM sqlite_master"):
                store._create(config)
            store._check_version()
            store._check_config(config)
            # In WAL a commit survives a killed process at any setting; FULL also survives power loss. Batches are
            # committed in groups a few times a second, so its one fsync a group costs nothing that counts.
            store._run("PRAGMA journal_mode=WAL")
            store._run("PRAGMA synchronous=FULL")
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: str | Path) -> Store:
        """Open the store that `path` is, or that lies in the run folder `path`."""
        path = Path(path) / STORE_NAME if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise StoreError(f"{path}: there is no store; run mmprm annotate first, or name its run folder")
        store = cls(path, _connect(path), None)
        try:
            store._connection.execute("PRAGMA query_only=ON")
            store._connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        except sqlite3.OperationalError:  # its folder cannot be written, and SQLite wants to write beside it
            store.close()
            store = cls._read_only(path)
        except (sqlite3.Error, UnicodeDecodeError):  # is told below
            pass
        store._check_version()
        return store

    @classmethod
    def _read_only(cls, path: Path) -> Store:
        """Open a store that nothing can be written beside: as it is or, with a log that was not merged, in a copy."""
        log, copy = Path(f"{path}-wal"), None
        try:
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            if log.is_file() and log.stat().st_size:
                copy = tempfile.TemporaryDirectory(prefix="mmprm-store-")
                for file in (path, log):
                    shutil.copyfile(file, Path(copy.name) / file.name)
                uri = (Path(copy.name) / path.name).as_uri()
            store = cls(path, sqlite3.connect(uri, uri=True, isolation_level=None), None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: cannot be read ({error}); check its permissions, or copy the folder") from error
        store._copy_folder = copy
        return store

    def close(self) -> None:
        self._connection.close()
        if self._copy_folder is not None:
            self._copy_folder.cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def fork(self, path: Path, config: dict[str, Any], keep_batches: bool) -> None:
        """Copy this store to `path`, where none may be, under another configuration, with every problem open again.

        The batches, and the sessions that drew them, are kept where they hold under that configuration as well.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
                partial = Path(folder) / path.name
                self._copy(partial, config, keep_batches)
                os.link(partial, path)  # where another fork was faster this fails, and a rename would not
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be made ({error.strerror}); run the same command again, or choose another run folder"
            ) from error

    def _copy(self, path: Path, config: dict[str, Any], keep_batches: bool) -> None:
        copy = Store(path, _connect(path), None)
        try:
            with copy._guard():
                self._connection.backup(copy._connection)
            with copy._transaction():
                copy._write_config(config)
                copy._run("UPDATE problems SET status = 'open', reason = ''")
                for table in () if keep_batches else ("batches", "reasons", "sessions"):
                    copy._run(f"DELETE FROM {table}")
            copy._run("VACUUM")
        finally:
            copy.close()

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the batches were drawn under."""
        value, *checksum = (row[0] for row in self.rows("SELECT value FROM config ORDER BY rowid"))
        try:
            config = parse_json(value, "the configuration", StoreError)
            if checksum not in ([], [digest_of(config)]):
                raise StoreError("its checksum does not fit")
        except (StoreError, TypeError) as error:
            raise StoreError(
                f"{self.path}: the stored configuration is damaged ({error}); restore a copy, or choose another run "
                "folder"
            ) from error
        return config

    def _write_config(self, config: dict[str, Any]) -> None:
        self._run("DELETE FROM config")
        for value in (json.dumps(config, sort_keys=True), digest_of(config)):
            self._run("INSERT INTO config VALUES (?)", value)

    def add_problems(self, problems: Iterable[Problem]) -> None:
        """Add those that are new, as open. A known id must have the same content; pictures may move."""
        with self._transaction():
            for problem in problems:
                content = pack_problem(problem)
                stored = self.rows("SELECT content FROM problems WHERE id = ?", problem.id)
                if not stored:
                    self._run("INSERT INTO problems (id, content) VALUES (?, ?)", problem.id, content)
                elif stored[0][0] != content:
                    self._check_same(self.problem(problem.id), problem)
                    self._run("UPDATE problems SET content = ? WHERE id = ?", content, problem.id)

    def _check_same(self, known: Problem, problem: Problem) -> None:
        differing = [
            name for name in ("question", "answer", "choices") if getattr(known, name) != getattr(problem, name)
        ]
        before, here = _contents(known.pictures), _contents(problem.pictures)
        if None not in before + here and before != here:
            differing.append("image")
        if differing:
            raise StoreError(
                f"{self.path}: problem {problem.id!r} is stored with another {differing[0]}; give the changed problem "
                "another id, or choose another run folder"
            )

    def ids(self, status: Status | None = None) -> list[str]:
        """Problem ids in the order in which they were added."""
        where = "" if status is None else "WHERE status = ?"
        rows = self.rows(f"SELECT id FROM problems {where} ORDER BY number", *([] if status is None else [status]))
        return [row[0] for row in rows]

    def problem(self, problem_id: str) -> Problem:
        rows = self.rows("SELECT content FROM problems WHERE id = ?", problem_id)
        if not rows:
            raise StoreError(f"{self.path}: has no problem {problem_id!r}")
        try:
            return unpack_problem(problem_id, rows[0][0])
        except DamagedError as error:
            raise StoreError(
                f"{self.path}: problem {problem_id!r} is damaged ({error}); mmprm annotate with this run reads it "
                "again, and samples it anew"
            ) from error

    def problems(self, status: Status | None = None) -> list[Problem]:
        return [self.problem(problem_id) for problem_id in self.ids(status)]

    def outcome(self, problem_id: str) -> tuple[Status, str]:
        """Status of a problem, with how it ended or why it failed."""
        return self.rows("SELECT status, reason FROM problems WHERE id = ?", problem_id)[0]

    def failures(self) -> dict[str, str]:
        """Reason of each failed problem."""
        return dict(self.rows("SELECT id, reason FROM problems WHERE status = 'failed' ORDER BY number"))

    def reopen(self, problem_ids: Iterable[str]) -> None:
        """Make these failed problems open again; their batches stay."""
        with self._transaction():
            for problem_id in problem_ids:
                self._run(
                    "UPDATE problems SET status = 'open', reason = '' WHERE id = ? AND status = 'failed'", problem_id
                )

    def begin_session(self, engines: int) -> None:
        """From now on `append` notes when it committed last: the time that rates and engine-hours are measured by."""
        now = time.time()
        self._session_began = now, time.monotonic()
        self._session = self._run(
            "INSERT INTO sessions (began, last, engines, batches_before) "
            "SELECT ?, ?, ?, COALESCE(MAX(number), 0) FROM batches",
            *(now, now, engines),
        ).lastrowid

    def append(self, batches: Sequence[PackedBatch], finished: Sequence[Finished] = ()) -> None:
        """Make these durable in one transaction; StoreError leaves the store as it was before."""
        reasons: Counter[tuple[str, str]] = Counter()
        with self._transaction():
            for batch in batches:
                if self._insert(batch):
                    reasons.update(batch.reasons)
            for (kind, reason), count in reasons.items():
                self._run(
                    "INSERT INTO reasons VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                    *(kind, reason, count),
                )
            for end in finished:
                self._run(
                    "UPDATE problems SET status = ?, reason = ?, labels = ? WHERE id = ?",
                    *(end.status, end.reason, end.labels, end.problem_id),
                )
            if self._session is not None:
                began, clock = self._session_began  # someone may set the time of day back
                last = began + time.monotonic() - clock
                self._run("UPDATE sessions SET last = ? WHERE number = ?", last, self._session)

    def batches(self, problem_id: str) -> list[Batch]:
        """The problem's batches in the order in which they were appended."""
        rows = self.rows(
            f"SELECT {BATCH_COLUMNS} FROM batches WHERE problem = (SELECT number FROM problems WHERE id = ?) "
            "ORDER BY number",
            problem_id,
        )
        return [self._batch(packed_of(problem_id, row)) for row in rows]

    def _batch(self, packed: PackedBatch) -> Batch:
        try:
            return open_batch(packed)
        except DamagedError as error:
            raise StoreError(
                f"{self.path}: {named(packed)} is damaged ({error}); mmprm annotate with this run samples it anew"
            ) from error

    def tree(self, problem_id: str) -> Tree:
        drawn: dict[Steps, list[Batch]] = {}
        for batch in self.batches(problem_id):
            drawn.setdefault(batch.steps, []).append(batch)
        return Tree(problem_id, tuple(_node(steps, batches) for steps, batches in drawn.items()))

    def trees(self) -> Iterator[Tree]:
        """The tree of every problem with at least one batch, also of those not finished."""
        rows = self.rows("SELECT id FROM problems WHERE number IN (SELECT problem FROM batches) ORDER BY number")
        return (self.tree(row[0]) for row in rows)

    def summary(self) -> StoreSummary:
        states, labels_so_far = self.rows(
            "SELECT COUNT(*), TOTAL(known > 0 AND depth > 0 AND status != 'done') FROM "
            "(SELECT problem, depth, SUM(correct + incorrect) AS known FROM batches GROUP BY problem, state) "
            "JOIN problems ON problems.number = problem"
        )[0]
        labels = self.rows("SELECT TOTAL(labels) FROM problems WHERE status = 'done'")[0][0] + labels_so_far
        right, wrong, unknown, tokens = self.rows(
            "SELECT TOTAL(correct), TOTAL(incorrect), TOTAL(unknown), TOTAL(tokens) FROM batches"
        )[0]
        reasons = self.rows("SELECT kind, reason, count FROM reasons ORDER BY count DESC")
        return StoreSummary(
            problems={"open": 0, "done": 0, "failed": 0}
            | dict(self.rows("SELECT status, COUNT(*) FROM problems GROUP BY status")),
            ended=dict(self.rows("SELECT reason, COUNT(*) FROM problems WHERE status = 'done' GROUP BY reason")),
            states=states,
            labels=int(labels),
            counts=Counts(int(right), int(wrong), int(unknown)),
            tokens=int(tokens),
            unknown_reasons={reason: count for kind, reason, count in reasons if kind == "unknown"},
            unsplit_reasons={reason: count for kind, reason, count in reasons if kind == "unsplit"},
        )

    def _insert(self, batch: PackedBatch) -> bool:
        counts = batch.counts
        cursor = self._run(
            "INSERT INTO batches (problem, state, depth, first_draw, correct, incorrect, unknown, tokens, rollouts) "
            "SELECT number, ?, ?, ?, ?, ?, ?, ?, ? FROM problems WHERE id = ? ON CONFLICT DO NOTHING",
            *(batch.state, batch.depth, batch.first_draw, counts.right, counts.wrong, counts.unknown),
            *(batch.token_count, batch.rollouts, batch.problem_id),
        )
        return cursor.rowcount == 1

    def _create(self, config: dict[str, Any]) -> None:
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._run(statement)
            self._write_config(config)
            self._run(f"PRAGMA application_id={_APPLICATION_ID}")
            self._run(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _check_version(self) -> None:
        if self.rows("PRAGMA application_id")[0][0] != _APPLICATION_ID:
            raise StoreError(f"{self.path}: {_NO_STORE}")
        version = self.rows("PRAGMA user_version")[0][0]
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: schema version {version} must be {SCHEMA_VERSION} (since 2 it keeps when its engines "
                "worked); use the mmprm that wrote it, or choose another run folder"
            )

    def _check_config(self, config: dict[str, Any]) -> None:
        differing = differing_keys(self.config, config)
        if differing:
            shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
            raise StoreError(
                f"{self.path}: was made with another configuration: {shown}; set these back, or go on in a copy with "
                "mmprm annotate --fork, or choose another run folder"
            )

    def rows(self, sql: str, *values: Any) -> list[tuple]:
        """Answer of a query, for mmprm.trees.tallies."""
        with self._guard():
            return self._connection.execute(sql, values).fetchall()

    def _run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        with self._guard():
            return self._connection.execute(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Yield (statement, *values) → cursor: all of them count, or none. For mmprm.trees.repair."""
        with self._transaction():
            yield self._run

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # damaged names make messages that are no UTF-8
            if "not a database" in str(error):
                raise StoreError(f"{self.path}: {_NO_STORE}") from error
            if "full" in str(error):
                way_out = "free some space and run the same command again: all that was finished is kept"
            elif "malformed" in str(error):
                way_out = "mmprm annotate with this run mends what can be mended; else restore a copy"
            else:
                way_out = "check the disk, or choose another run folder"
            raise StoreError(f"{self.path}: {error}; {way_out}") from error


def differing_keys(stored: dict[str, Any], asked: dict[str, Any]) -> dict[str, str]:
    """Each key whose values differ, with "stored …, asked …"."""
    old, new = _flatten(stored), _flatten(json.loads(json.dumps(asked)))
    return {
        key: f"stored {old.get(key)!r}, asked {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def _lock(path: Path) -> int:
    """Hold `path`.lock for the life of this process. A POSIX lock is not inherited by forked children, so a grading
    process that outlives a killed driver does not keep the next driver out."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError | PermissionError):  # a file system without locks
            raise
        raise StoreError(f"{path}: another campaign is writing this store; wait for it or stop it") from error
    return descriptor


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(path, isolation_level=None, timeout=30)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be opened: {error}; choose another run folder") from error


BATCH_COLUMNS = "state, depth, first_draw, correct, incorrect, unknown, tokens, rollouts"


def packed_of(problem_id: str, row: tuple[Any, ...]) -> PackedBatch:
    """Return the batch that BATCH_COLUMNS hold."""
    state, depth, first_draw, right, wrong, unknown, token_count, rollouts = row
    return PackedBatch(problem_id, state, depth, first_draw, Counts(right, wrong, unknown), token_count, (), rollouts)


def named(packed: PackedBatch) -> str:
    """Return how messages name a batch."""
    where = f"after {packed.depth} step{'s' * (packed.depth != 1)}" if packed.depth else "of whole solutions"
    return f"the batch {where} from sample {packed.first_draw} of problem {packed.problem_id!r}"


def _contents(pictures: Iterable[Picture]) -> list[bytes | None]:
    """Return a digest of each picture's bytes, None where they cannot be read."""

    def content(picture: Picture) -> bytes | None:
        data = picture.data
        if data is None:
            try:
                data = image_bytes(picture)
            except (OSError, ValueError, DataError):
                return None
        return hashlib.sha256(data).digest()

    return [content(picture) for picture in pictures]


def _node(steps: Steps, batches: list[Batch]) -> Node:
    batches = sorted(batches, key=lambda batch: batch.first_draw)
    counts = tuple(count_verdicts(batch.rollouts) for batch in batches)
    return Node(steps, counts, tuple(rollout for batch in batches for rollout in batch.rollouts))


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in _flatten(inner, f"{prefix}.{name}".lstrip(".")).items()
    }
