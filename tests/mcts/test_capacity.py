"""Test the adaptive number of concurrent searches per engine."""

from __future__ import annotations

import pytest

from mcts.capacity import MOST, Load, adapt


@pytest.mark.parametrize(
    ("capacity", "in_flight", "load", "after"),
    [
        (64, 64, Load(running=200, waiting=0, cache=0.4), 80),
        (64, 60, Load(running=200, waiting=0, cache=0.4), 64),  # capacity is unused: no change
        (64, 64, Load(running=256, waiting=100, cache=0.4), 64),
        (100, 100, Load(running=256, waiting=600, cache=0.4), 90),
        (100, 100, Load(running=80, waiting=30, cache=0.97), 90),
        (100, 100, Load(running=80, waiting=0, cache=0.97), 125),  # filled with cached prefixes that may be evicted
        (64, 64, Load(running=0, waiting=0, cache=0.0), 80),  # idle
        (1, 1, Load(running=1, waiting=9, cache=1.0), 1),
        (MOST, MOST, Load(running=200, waiting=0, cache=0.4), MOST),
    ],
)
def test_adapt(capacity: int, in_flight: int, load: Load, after: int) -> None:
    assert adapt(capacity, in_flight, load) == after


def test_it_settles_on_an_engine_of_capacity_256() -> None:
    """Each tree requests six completions at a time; requests beyond the engine's capacity wait."""
    capacity = 4
    for _ in range(60):
        asked = 6 * capacity
        capacity = adapt(capacity, capacity, Load(min(asked, 256), max(0, asked - 256), 0.5))
    assert 256 * 1.25 <= 6 * capacity <= 256 * 3
