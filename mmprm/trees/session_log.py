"""Record in a run store when a session sampled and with how many engines.

Throughput and engine-hours are computed from these times; see mmprm.trees.tallies.
"""

from __future__ import annotations

import time

from mmprm.trees.database import Database


class SessionLog:
    """Writes the rows of one session. Each change in its number of engines starts a new row."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._row: int | None = None
        self._began = (0.0, 0.0)
        """Wall-clock time and monotonic clock reading when the session started."""

    def begin(self, engines: int) -> None:
        """Start a session with `engines` running engines."""
        now = time.time()
        self._began = now, time.monotonic()
        self._row = self._add_row(now, engines)

    def set_engines(self, engines: int) -> None:
        """End the current row and start one with `engines` engines; call this method within a transaction."""
        now = self._now()
        self._set_last(now)
        self._row = self._add_row(now, engines)

    def touch(self) -> None:
        """Set the time of the last commit to now, if a session has begun."""
        if self._row is not None:
            self._set_last(self._now())

    def _set_last(self, now: float) -> None:
        self._database.run("UPDATE sessions SET last = ? WHERE number = ?", now, self._row)

    def _add_row(self, now: float, engines: int) -> int | None:
        """Add a row that starts at the given time, and return its number."""
        cursor = self._database.run(
            "INSERT INTO sessions (began, last, engines, batches_before) "
            "SELECT ?, ?, ?, COALESCE(MAX(number), 0) FROM batches",
            *(now, now, engines),
        )
        return cursor.lastrowid

    def _now(self) -> float:
        began, clock = self._began  # the wall clock may be set back during a session
        return began + time.monotonic() - clock
