"""Smooth curves with a moving mean."""

from __future__ import annotations

from collections.abc import Sequence


def smoothing(count: int) -> int:
    """Return the window size of the moving mean for a curve of `count` values. Curves of up to 39 values are not
    smoothed."""
    return max(1, count // 20)


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of up to `window` values around each value. Windows are truncated at both ends."""
    before, after = (window - 1) // 2, window // 2
    parts = (values[max(0, position - before) : position + after + 1] for position in range(len(values)))
    return [sum(part) / len(part) for part in parts]
