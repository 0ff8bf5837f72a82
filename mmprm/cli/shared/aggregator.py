"""Choose the aggregator of a command."""

from __future__ import annotations

import sys

from mmprm.evaluation.aggregators import misgiving
from mmprm.prm.info import PrmInfo
from mmprm.scoring.aggregate import chosen_aggregator


def settled(configured: str | None, info: PrmInfo) -> str:
    """Return the configured aggregator, or the one in prm.json; a warning about it goes to standard error."""
    name = chosen_aggregator(configured, info.aggregator)
    warn(name, info)
    return name


def warn(name: str, info: PrmInfo) -> None:
    """Print a warning about an aggregator to standard error if there is evidence against it."""
    if why := misgiving(name, info):
        print(f"note: {why}", file=sys.stderr)
