"""Cache a judge's replies in an SQLite file that survives interruptions and can be shared between local processes."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import suppress
from pathlib import Path

from mmprm.errors import GradingError


class ReplyCache:
    """Maps request keys to replies in an SQLite file.

    Only opening the file raises an error; later read or write failures only cause repeated requests.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
            with suppress(sqlite3.OperationalError):  # other processes may be creating the file; any journal mode works
                self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise GradingError(f"{path}: cannot be used as cache of replies ({error}); choose another file") from error

    def get(self, key: bytes) -> str | None:
        """Return the cached reply, or None if there is none."""
        with suppress(sqlite3.Error):
            for (reply,) in self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)):
                return reply
        return None

    def put(self, key: bytes, reply: str) -> None:
        """Store a reply, ignoring failures."""
        with suppress(sqlite3.Error, UnicodeEncodeError):
            self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def reply_key(*asked: str) -> bytes:
    """Return the cache key for a request, a hash of its texts."""
    return hashlib.sha256(json.dumps(asked).encode()).digest()
