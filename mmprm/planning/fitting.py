"""Find changes to the configuration that make a run fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, chain, combinations
from typing import Any

Changes = Mapping[str, Any]
"""New configuration values by dotted key."""


def ways_to_fit(fits: Callable[[Changes], bool], changes: Iterable[Changes]) -> list[str]:
    """Return changes that make a configuration fit, each formatted as command-line options.

    Each of `changes` is tried alone; among those with the same keys, the first that fits counts. If none suffices,
    combinations are tried: settings other than hardware, pairs of changes, then all changes. The first one that fits is
    returned.
    """
    changes = list(changes)
    alone: dict[frozenset[str], Changes] = {}
    for change in changes:
        if frozenset(change) not in alone and fits(change):
            alone[frozenset(change)] = change
    if alone:
        return [spelled(change) for change in alone.values()]
    # Settings cost only time, so they are combined before more or larger GPUs are proposed.
    settings = [change for change in changes if not any(key.startswith("hardware.") for key in change)]
    pairs = (_join(left, right) for left, right in combinations(changes, 2) if left.keys().isdisjoint(right))
    for joint in chain(accumulate(settings, _join), pairs, accumulate(changes, _join)):
        if fits(joint):
            return [spelled(_needed(fits, joint))]
    return []


def _needed(fits: Callable[[Changes], bool], changes: Changes) -> Changes:
    """Remove the changes that are not needed for the configuration to fit."""
    for key in list(changes):
        fewer = {name: value for name, value in changes.items() if name != key}
        if fits(fewer):
            changes = fewer
    return changes


def spelled(changes: Changes) -> str:
    """Format changes as command-line options."""
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())


def _join(left: Changes, right: Changes) -> Changes:
    return {**left, **right}
