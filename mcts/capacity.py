"""Adapt the number of concurrent searches per worker: enough to keep the engine busy without overflowing its cache."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 64
MOST = 4096


@dataclass(frozen=True, slots=True)
class Load:
    """Describe an engine's last step: completions running and waiting, and the fraction of its KV cache in use."""

    running: int
    waiting: int
    cache: float


def adapt(capacity: int, in_flight: int, load: Load) -> int:
    """Return the number of concurrent searches to allow after an engine's report.

    It grows by a quarter when the engine's queue is nearly empty although all slots are in use. It shrinks by a tenth
    when the engine's cache is full, or when more completions wait than two rounds can take, because their cached
    prefixes are evicted meanwhile.
    """
    if load.waiting and (load.cache > 0.95 or load.waiting > 2 * load.running):
        return max(1, capacity - max(1, capacity // 10))
    if load.waiting <= load.running / 4 and in_flight >= capacity:
        return min(MOST, capacity + max(1, capacity // 4))
    return capacity
