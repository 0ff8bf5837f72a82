"""Find changes to the configuration that make a run fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, combinations
from typing import Any

Changes = Mapping[str, Any]
"""New configuration values by dotted key."""


def ways_to_fit(fits: Callable[[Changes], bool], changes: Iterable[Changes]) -> list[Changes]:
    """Return changes that make a configuration fit.

    Settings cost only time, so they are tried before other hardware: each alone, then in combinations. Of several
    changes to the same keys, only the first that suffices is returned. Each change of hardware is then tried alone. If
    nothing fits, all changes are combined. Unneeded parts of a combination are left out.
    """
    changes = list(changes)
    settings = [change for change in changes if not any(key.startswith("hardware.") for key in change)]
    found = _alone(fits, settings) or _combined(fits, settings)
    found += _alone(fits, [change for change in changes if change not in settings])
    return found or _combined(fits, changes)


def _alone(fits: Callable[[Changes], bool], changes: Iterable[Changes]) -> list[Changes]:
    """Return the changes that each suffice on their own: the first such change for each set of keys."""
    found: dict[frozenset[str], Changes] = {}
    for change in changes:
        if frozenset(change) not in found and fits(change):
            found[frozenset(change)] = change
    return list(found.values())


def _combined(fits: Callable[[Changes], bool], changes: Sequence[Changes]) -> list[Changes]:
    """Return the first combination that suffices, trying all pairs and then ever longer prefixes of `changes`."""
    pairs = (_join(left, right) for left, right in combinations(changes, 2) if left.keys().isdisjoint(right))
    for joint in chain(pairs, accumulate(changes, _join)):
        if fits(joint):
            return [_needed(fits, joint)]
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
    return " ".join(f"--set {key}={'null' if value is None else str(value).lower()}" for key, value in changes.items())


def _join(left: Changes, right: Changes) -> Changes:
    return {**left, **right}
