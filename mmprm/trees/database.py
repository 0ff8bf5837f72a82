"""Open the SQLite database of a run store for one writer or for readers, with errors that name the database."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmprm.errors import StoreError

STORE_NAME = "trees.sqlite"
"""File name of the store in a run folder."""

SCHEMA_VERSION = 2
"""Version of the current database schema; version 2 added the sessions table."""

_APPLICATION_ID = 0x4D4D5052
_NO_STORE = "is not a run store of mmprm; choose another run folder"

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


class Database:
    """Wraps the SQLite connection of a run store.

    Open it with `writing` (one writer at a time) or `reading` (any number of readers, also during writes).
    """

    def __init__(self, path: Path, connection: sqlite3.Connection | None = None) -> None:
        self.path = path
        self._connection = connection or _connect(path)
        self._lock: int | None = None
        self._copy_folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def writing(cls, path: Path) -> Database:
        """Open the database at `path` as its only writer, creating it if it does not exist."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written ({error.strerror}); choose another run folder") from error
        try:
            database = cls(path)
        except StoreError:
            os.close(lock)
            raise
        database._lock = lock
        return database

    @classmethod
    def reading(cls, path: Path) -> Database:
        """Open an existing database for reading, even if its folder is not writable."""
        database = cls(path)
        try:
            database._connection.execute("PRAGMA query_only=ON")
            database._connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        except sqlite3.OperationalError:  # a read-only folder: SQLite cannot create files next to the database
            database.close()
            database = cls._read_only(path)
        except (sqlite3.Error, UnicodeDecodeError):  # check_version reports it
            pass
        return database

    @classmethod
    def _read_only(cls, path: Path) -> Database:
        """Open a database in a read-only folder: the file itself, or a copy if its WAL file is not empty."""
        log, copy = Path(f"{path}-wal"), None
        try:
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            if log.is_file() and log.stat().st_size:
                copy = tempfile.TemporaryDirectory(prefix="mmprm-store-")
                for file in (path, log):
                    shutil.copyfile(file, Path(copy.name) / file.name)
                uri = (Path(copy.name) / path.name).as_uri()
            database = cls(path, sqlite3.connect(uri, uri=True, isolation_level=None))
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: cannot be read ({error}); check its permissions, or copy the folder") from error
        database._copy_folder = copy
        return database

    def close(self) -> None:
        """Close the connection and release the writer lock."""
        self._connection.close()
        if self._copy_folder is not None:
            self._copy_folder.cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def copy_to(self, other: Database) -> None:
        """Copy the whole database to `other`."""
        with other._guard():
            self._connection.backup(other._connection)

    def is_empty(self) -> bool:
        """Return whether the database has no tables."""
        return not self.rows("SELECT 1 FROM sqlite_master")

    def create_tables(self) -> None:
        """Create the tables in an empty database; call this method within a transaction."""
        for statement in _SCHEMA.split(";"):
            self.run(statement)
        self.run(f"PRAGMA application_id={_APPLICATION_ID}")
        self.run(f"PRAGMA user_version={SCHEMA_VERSION}")

    def check_version(self) -> None:
        """Raise StoreError unless this is a run store with the current schema version."""
        if self.rows("PRAGMA application_id")[0][0] != _APPLICATION_ID:
            raise StoreError(f"{self.path}: {_NO_STORE}")
        version = self.rows("PRAGMA user_version")[0][0]
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: schema version {version} must be {SCHEMA_VERSION} (version 2 added the working hours of "
                "engines); use the version of mmprm that wrote it, or choose another run folder"
            )

    def rows(self, sql: str, *values: Any) -> list[tuple]:
        """Run a query and return all its rows."""
        with self._guard():
            return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Execute one statement, and return its cursor."""
        with self._guard():
            return self._connection.execute(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Yield a function that executes statements; commit all of them at the end of the `with` block, or none after
        an error."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield self.run
            self.run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # with damaged names, error messages are not valid UTF-8
            if "not a database" in str(error):
                raise StoreError(f"{self.path}: {_NO_STORE}") from error
            if "full" in str(error):
                way_out = "free some space and run the same command again; finished work is kept"
            elif "malformed" in str(error):
                way_out = "run mmprm annotate on this folder to repair what can be repaired, or restore a backup"
            else:
                way_out = "check the disk, or choose another run folder"
            raise StoreError(f"{self.path}: {error}; {way_out}") from error


def _lock(path: Path) -> int:
    """Lock the file `path`.lock for this process until it exits, and return the file descriptor.

    Forked children do not inherit a POSIX lock, so a grading process that outlives a killed driver does not lock out
    the next driver.
    """
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError | PermissionError):  # the file system has no locks
            raise
        raise StoreError(f"{path}: another campaign is writing to this store; wait for it, or stop it") from error
    return descriptor


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(path, isolation_level=None, timeout=30)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be opened: {error}; choose another run folder") from error
