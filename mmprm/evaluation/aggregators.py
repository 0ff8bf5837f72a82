"""Choosing the aggregator by evidence: best-of-N accuracy of each one on a development set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.metrics import Interval, bootstrap_means
from mmprm.scoring.aggregate import AGGREGATORS
from mmprm.selection.groups import Group, choices, common_size
from mmprm.selection.selectors import best_of_n


@dataclass(frozen=True, slots=True)
class AggregatorChoice:
    """The chosen aggregator's name, its best-of-N accuracy, and that of every candidate, on the development set."""

    name: str
    n: int
    problems: int
    accuracy: Interval
    candidates: dict[str, Interval]


def choose_aggregator(development: Sequence[Group], seed: int = 0) -> AggregatorChoice:
    """The aggregator of highest best-of-N accuracy over groups of N scored candidates; the first of the table among
    equals."""
    n = common_size(development)
    values_AP = [[best_of_n(choices(group, name)) for group in development] for name in AGGREGATORS]
    candidates = dict(zip(AGGREGATORS, bootstrap_means(values_AP, seed), strict=True))
    name = max(candidates, key=lambda key: candidates[key].value)
    return AggregatorChoice(name, n, len(development), candidates[name], candidates)
