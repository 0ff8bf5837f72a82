"""Summarize a run store without reading its rollouts: sessions, totals per problem, and samples since a given batch."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

from mmprm.trees.store import ProblemStatus, Store


@dataclass(frozen=True, slots=True)
class Session:
    """Holds the times and engine counts of one session, a single execution of an annotation run.

    `began` is when its first engine was ready and `last` its last commit, in seconds since 1970. `engines` is the
    number of engines at the end, and `batches_before` the number of batches that the store already held.
    `engine_seconds` is the total running time of all engines.
    """

    began: float
    last: float
    engines: int
    batches_before: int
    engine_seconds: float

    @property
    def seconds(self) -> float:
        """Return the duration of the session in seconds."""
        return max(self.last - self.began, 0.0)  # older stores recorded wall-clock time, which may be set back


@dataclass(frozen=True, slots=True)
class SampledCounts:
    """Holds the number of rollouts and tokens in a set of batches."""

    rollouts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ProblemTally:
    """Holds the counts of states, labels, rollouts, tokens and bytes for one problem.

    `labels` is defined as in StoreSummary; `bytes` is the compressed size of the problem and its batches.
    """

    problem_id: str
    status: ProblemStatus
    reason: str
    states: int
    labels: int
    rollouts: int
    tokens: int
    bytes: int


def sessions(store: Store) -> list[Session]:
    """Return the sessions of the store in chronological order.

    Each change in a session's number of engines starts a new row, which begins when the previous row ends.
    """
    found: list[Session] = []
    rows = store.rows("SELECT began, last, engines, batches_before FROM sessions ORDER BY number")
    for began, last, engines, batches_before in rows:
        engine_seconds = engines * max(last - began, 0.0)
        if found and found[-1].last == began:
            first = found.pop()
            began, batches_before = first.began, first.batches_before
            engine_seconds += first.engine_seconds
        found.append(Session(began, last, engines, batches_before, engine_seconds))
    return found


def sampled_after(store: Store, batches_before: int) -> SampledCounts:
    """Return the totals of all batches in the store except the first `batches_before`."""
    rollouts, tokens = store.rows(
        "SELECT TOTAL(correct + incorrect + unknown), TOTAL(tokens) FROM batches WHERE number > ?", batches_before
    )[0]
    return SampledCounts(int(rollouts), int(tokens))


def tallies(store: Store) -> list[ProblemTally]:
    """Return one ProblemTally per problem, in the order in which the problems were added."""
    rows = store.rows(
        "SELECT id, status, reason, COUNT(state), "
        "CASE status WHEN 'done' THEN labels ELSE TOTAL(known > 0 AND depth > 0) END, TOTAL(sampled), TOTAL(tokens), "
        "LENGTH(content) + TOTAL(size) FROM problems LEFT JOIN "
        "(SELECT problem, state, depth, SUM(correct + incorrect) AS known, SUM(tokens) AS tokens, "
        "SUM(correct + incorrect + unknown) AS sampled, SUM(LENGTH(rollouts)) AS size FROM batches "
        "GROUP BY problem, state) ON problem = problems.number GROUP BY problems.number ORDER BY problems.number"
    )
    return [ProblemTally(*row[:3], *map(int, row[3:])) for row in rows]


def begun(store: Store) -> int:
    """Count the open problems that have at least one batch."""
    return store.rows(
        "SELECT COUNT(*) FROM problems WHERE status = 'open' AND "
        "EXISTS (SELECT 1 FROM batches WHERE problem = problems.number)"
    )[0][0]


def is_being_written(store: Store) -> bool:
    """Return whether another process has locked the store for writing.

    The writer itself must not call this: closing the file opened here would release its lock.
    """
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
