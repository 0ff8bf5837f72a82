"""Find changes of a configuration with which it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any

Changes = Mapping[str, Any]
"""New values by dotted key."""


def ways_to_fit(fits: Callable[[Changes], bool], changes: Iterable[Changes]) -> list[str]:
    """Return the changes, as options, that make a configuration fit.

    Each of `changes` is tried alone; of those with the same keys, the first one counts. If none suffices, they are
    combined in their order until the configuration fits, and those that it does not need are left out again.
    """
    changes = list(changes)
    alone: dict[frozenset[str], Changes] = {}
    for change in changes:
        if frozenset(change) not in alone and fits(change):
            alone[frozenset(change)] = change
    if alone:
        return [spelled(change) for change in alone.values()]
    together = next((joint for joint in accumulate(changes, _join) if fits(joint)), None)
    if together is None:
        return []
    for key in list(together):
        fewer = {name: value for name, value in together.items() if name != key}
        if fits(fewer):
            together = fewer
    return [spelled(together)]


def spelled(changes: Changes) -> str:
    """Return the changes as command-line options."""
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())


def _join(left: Changes, right: Changes) -> Changes:
    return {**left, **right}
