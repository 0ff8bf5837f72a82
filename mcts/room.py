"""How many trees one worker searches at a time: enough to keep its engine's queue filled, few enough for its cache."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 64
MOST = 4096


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine said of its last step: completions computed and waiting, and the share of its cache in use."""

    running: int
    waiting: int
    cache: float


def adapt(room: int, in_flight: int, load: Load) -> int:
    """The room after an engine's report: a quarter more when its queue runs dry although the room was used, a tenth
    less when its cache is full or completions wait for more than two rounds, in which time their prefixes grow cold."""
    if load.waiting and (load.cache > 0.95 or load.waiting > 2 * load.running):
        return max(1, room - max(1, room // 10))
    if load.waiting <= load.running / 4 and in_flight >= room:
        return min(MOST, room + max(1, room // 4))
    return room
