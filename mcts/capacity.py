"""Adapt the number of concurrent searches per worker to keep its engine busy without overflowing the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 64
MOST = 4096


@dataclass(frozen=True, slots=True)
class Load:
    """Describes an engine's load: running and waiting completions, and KV cache usage as a fraction."""

    running: int
    waiting: int
    cache: float


def adapt(capacity: int, in_flight: int, load: Load) -> int:
    """Return the new number of concurrent searches, adapted to the load that an engine reports.

    It grows by a quarter when the engine's queue is nearly empty although all slots are in use. It shrinks by a tenth
    when the engine's KV cache is full, or when the queue is longer than twice the running batch: cached prefixes would
    be evicted before such a queue is served.
    """
    if load.waiting and (load.cache > 0.95 or load.waiting > 2 * load.running):
        return max(1, capacity - max(1, capacity // 10))
    if load.waiting <= load.running / 4 and in_flight >= capacity:
        return min(MOST, capacity + max(1, capacity // 4))
    return capacity
