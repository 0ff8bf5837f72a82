"""Evaluate best-of-N with every selector and aggregator, on the candidates saved by `mmprm rerank`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.scoring.aggregate import aggregator
from mmprm.selection.accuracy import AccuracyAtN, accuracy_at_n, sizes_up_to
from mmprm.selection.groups import CandidateGroup, common_size

OWN = ("prm", "weighted")
"""Selectors whose choice depends on how step scores are aggregated."""


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Holds the accuracy of each selector, by aggregator and N.

    `best` is the aggregator with the highest PRM accuracy at the largest N.
    """

    problems: int
    samples: int
    accuracy: dict[str, list[AccuracyAtN]]
    best: str


def evaluate_best_of_n(groups: Sequence[CandidateGroup], aggregators: Sequence[str], seed: int = 0) -> BestOfN:
    """Evaluate all selectors for N = 1, 2, 4, … up to the sample count, which must be equal for all problems."""
    most = common_size(groups)
    for name in aggregators:
        aggregator(name)  # raises for an unknown name before anything is computed
    accuracy = {name: accuracy_at_n(groups, name, sizes_up_to(most), seed) for name in aggregators}
    best = max(accuracy, key=lambda name: accuracy[name][-1].accuracy["prm"].value)
    return BestOfN(len(groups), most, accuracy, best)
