"""Best-of-N measured again, from candidates that `mmprm rerank` left: every selector with every aggregator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.scoring.aggregate import aggregator
from mmprm.selection.accuracy import AccuracyAtN, accuracy_at_n, sizes_up_to
from mmprm.selection.groups import Group, common_size

OWN = ("prm", "weighted")
"""Selectors that depend on the aggregator."""


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Accuracy against N by aggregator; `best` is the one of highest best-of-N accuracy at the largest N."""

    problems: int
    samples: int
    accuracy: dict[str, list[AccuracyAtN]]
    best: str


def evaluate_best_of_n(groups: Sequence[Group], aggregators: Sequence[str], seed: int = 0) -> BestOfN:
    """All selectors, for N = 1, 2, 4, … and the number of samples; problems must have the same number."""
    most = common_size(groups)
    for name in aggregators:
        aggregator(name)
    accuracy = {name: accuracy_at_n(groups, name, sizes_up_to(most), seed) for name in aggregators}
    best = max(accuracy, key=lambda name: accuracy[name][-1].accuracy["prm"].value)
    return BestOfN(len(groups), most, accuracy, best)
