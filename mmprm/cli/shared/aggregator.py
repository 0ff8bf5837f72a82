"""Resolve which aggregator a command uses."""

from __future__ import annotations

import sys

from mmprm.evaluation.aggregators import misgiving
from mmprm.prm.info import PrmInfo
from mmprm.scoring.aggregate import chosen_aggregator


def settled(configured: str | None, info: PrmInfo) -> str:
    """Return the configured aggregator or the one in prm.json, and print any warning about it."""
    name = chosen_aggregator(configured, info.aggregator)
    warn(name, info)
    return name


def warn(name: str, info: PrmInfo) -> None:
    """Print the warning that `misgiving` returns about the aggregator, if any, to standard error."""
    if why := misgiving(name, info):
        print(f"note: {why}", file=sys.stderr)
