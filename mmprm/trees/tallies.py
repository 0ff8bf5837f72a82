"""What a run store came to, without its rollouts: sessions, problems one by one, and what was drawn since when."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

from mmprm.trees.store import Status, Store


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the driver: when its first engine was up and when it committed last (seconds since 1970), its engines,
    and the batches that the store already had."""

    began: float
    last: float
    engines: int
    batches_before: int

    @property
    def seconds(self) -> float:
        return max(self.last - self.began, 0.0)  # of stores that took the time of day, which may be set back


@dataclass(frozen=True, slots=True)
class Drawn:
    """What batches amount to."""

    rollouts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What one problem came to; `labels` as in StoreSummary, `bytes` the compressed size of it and its batches."""

    problem_id: str
    status: Status
    reason: str
    states: int
    labels: int
    rollouts: int
    tokens: int
    bytes: int


def sessions(store: Store) -> list[Session]:
    rows = store.rows("SELECT began, last, engines, batches_before FROM sessions ORDER BY number")
    return [Session(*row) for row in rows]


def drawn_after(store: Store, batches_before: int) -> Drawn:
    rollouts, tokens = store.rows(
        "SELECT TOTAL(correct + incorrect + unknown), TOTAL(tokens) FROM batches WHERE number > ?", batches_before
    )[0]
    return Drawn(int(rollouts), int(tokens))


def tallies(store: Store) -> list[Tally]:
    """One a problem, in the order in which they were added."""
    rows = store.rows(
        "SELECT id, status, reason, COUNT(state), "
        "CASE status WHEN 'done' THEN labels ELSE TOTAL(known > 0 AND depth > 0) END, TOTAL(drawn), TOTAL(tokens), "
        "LENGTH(content) + TOTAL(size) FROM problems LEFT JOIN "
        "(SELECT problem, state, depth, SUM(correct + incorrect) AS known, SUM(tokens) AS tokens, "
        "SUM(correct + incorrect + unknown) AS drawn, SUM(LENGTH(rollouts)) AS size FROM batches "
        "GROUP BY problem, state) ON problem = problems.number GROUP BY problems.number ORDER BY problems.number"
    )
    return [Tally(*row[:3], *map(int, row[3:])) for row in rows]


def begun(store: Store) -> int:
    """Open problems with at least one batch."""
    return store.rows(
        "SELECT COUNT(*) FROM problems WHERE status = 'open' AND "
        "EXISTS (SELECT 1 FROM batches WHERE problem = problems.number)"
    )[0][0]


def is_being_written(store: Store) -> bool:
    """Whether another process holds the writer's lock. Not to be asked by the writer: closing the file that is opened
    here would drop its lock."""
    try:
        descriptor = os.open(f"{store.path}.lock", os.O_RDONLY)
    except OSError:
        return False
    flock = "hhqqi"  # Linux's struct flock: type, whence, start, length, process
    try:
        held = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(flock, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return struct.unpack(flock, held)[0] != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
