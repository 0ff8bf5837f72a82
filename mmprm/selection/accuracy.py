"""Accuracy against the number of samples, for every selector, with paired bootstrap intervals over problems.

Shapes: P problem, N samples a selector may choose from, M samples drawn for each problem.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmprm.errors import ConfigError
from mmprm.metrics import Interval, bootstrap_mean, paired_difference
from mmprm.selection.groups import Group, choices, common_size
from mmprm.selection.selectors import SELECTORS, Choice

SUBSETS = 256
"""Where there are more subsets of size N than this, so many of them are drawn with the seed instead."""


@dataclass(frozen=True, slots=True)
class AccuracyAtN:
    """Accuracies of the selectors when each chooses among N samples, and each one's difference to two baselines."""

    n: int
    accuracy: dict[str, Interval]
    minus_random: dict[str, Interval]
    minus_majority: dict[str, Interval]


def accuracy_at_n(
    groups: Sequence[Group], aggregate: str, sizes: Sequence[int] = (1, 2, 4, 8), seed: int = 0
) -> list[AccuracyAtN]:
    """One AccuracyAtN for each of `sizes`, from groups of M ≥ max(sizes) candidates each.

    A problem's accuracy at N is the mean over all its subsets of N of the M candidates (over SUBSETS drawn ones where
    there are more), the same subsets for every selector; ties are split evenly. At N = M it is the selector's choice
    among all candidates. Intervals are percentile bootstraps over problems.
    """
    most = common_size(groups)
    if wrong := [n for n in sizes if not 1 <= n <= most]:
        raise ConfigError(f"sizes={list(sizes)}: {wrong[0]} must lie between 1 and the {most} samples of each problem")
    choices_P = [choices(group, aggregate) for group in groups]
    points = []
    for n in sizes:
        values = dict(zip(SELECTORS, _selector_values(choices_P, n, seed), strict=True))
        points.append(
            AccuracyAtN(
                n=n,
                accuracy={name: bootstrap_mean(values_P, seed) for name, values_P in values.items()},
                minus_random={
                    name: paired_difference(values_P, values["random"], seed) for name, values_P in values.items()
                },
                minus_majority={
                    name: paired_difference(values_P, values["majority"], seed) for name, values_P in values.items()
                },
            )
        )
    return points


def _selector_values(choices_P: Sequence[Sequence[Choice]], n: int, seed: int) -> NDArray[np.float64]:
    """Accuracy of each selector (rows, in the table's order) on each problem (columns)."""
    subsets = _subsets(len(choices_P[0]), n, seed)
    return np.array(
        [
            [
                math.fsum(select([choices[index] for index in subset]) for subset in subsets) / len(subsets)
                for choices in choices_P
            ]
            for select in SELECTORS.values()
        ]
    )


def _subsets(most: int, n: int, seed: int) -> list[tuple[int, ...]]:
    if math.comb(most, n) <= SUBSETS:
        return list(itertools.combinations(range(most), n))
    rng = random.Random(seed)
    return [tuple(sorted(rng.sample(range(most), n))) for _ in range(SUBSETS)]
