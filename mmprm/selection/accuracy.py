"""Accuracy against the number of samples, for every selector, with paired bootstrap intervals over problems.

Shapes: P problem, N number of samples that a selector chooses from, K selector, M sample drawn for each problem,
B subset of them.
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
from mmprm.metrics import Interval, bootstrap_means
from mmprm.selection.groups import Group, choices, common_size
from mmprm.selection.selectors import SELECTORS, Choices

SUBSETS = 256
"""Where there are more subsets of size N than this, so many of them are drawn with the seed instead."""

CHUNK = 64
"""Problems computed together, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class AccuracyAtN:
    """Accuracies of the selectors when each chooses among N samples, and each one's difference to two baselines."""

    n: int
    accuracy: dict[str, Interval]
    minus_random: dict[str, Interval]
    minus_majority: dict[str, Interval]


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


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
    seen = choices(groups, aggregate)
    values_NKP = np.array([_selector_values(seen, n, seed) for n in sizes])
    baselines = [list(SELECTORS).index(name) for name in ("random", "majority")]
    compared = [values_NKP, *(values_NKP - values_NKP[:, [k]] for k in baselines)]
    intervals = iter(bootstrap_means(np.concatenate(compared, axis=1).reshape(-1, len(groups)), seed))

    def by_selector() -> dict[str, Interval]:
        return {name: next(intervals) for name in SELECTORS}

    return [AccuracyAtN(n, by_selector(), by_selector(), by_selector()) for n in sizes]


def accuracy(groups: Sequence[Group], aggregate: str, seed: int = 0) -> dict[str, Interval]:
    """Each selector's accuracy when it chooses among all candidates of a group; their number may differ by problem."""
    return _intervals(_over_all(groups, aggregate), seed)


@dataclass(frozen=True, slots=True)
class EqualTokens:
    """Best-of-n with as many generated tokens as another strategy; n may lie between two numbers of samples, whose
    accuracies are then mixed. `tokens` are those of both, a problem; `difference` is the other strategy's accuracy
    minus best-of-n's, paired by problem. Where the drawn samples have fewer tokens than the strategy, `n` is their
    number and `tokens` are theirs."""

    n: float
    tokens: float
    accuracy: dict[str, Interval]
    difference: dict[str, Interval]


def at_equal_tokens(
    guided: Sequence[Group], tokens: int, samples: Sequence[Group], aggregate: str, seed: int = 0
) -> EqualTokens:
    """Compare a strategy's groups, for which `tokens` were generated in all, with whole samples of the same problems.

    n = tokens / (tokens of all samples / samples a problem), at least 1 and at most the samples a problem.
    """
    assert [group.problem.id for group in guided] == [group.problem.id for group in samples], "the same problems"
    most = common_size(samples)
    each = sum(candidate.token_count for group in samples for candidate in group.candidates) / most
    n = min(max(tokens / each, 1.0), float(most))
    below = math.floor(n)
    seen = choices(samples, aggregate)
    low, high = (_selector_values(seen, size, seed) for size in (below, min(below + 1, most)))
    mixed = low + (n - below) * (high - low)
    return EqualTokens(
        n=n,
        tokens=n * each / len(samples),
        accuracy=_intervals(mixed, seed),
        difference=_intervals(_over_all(guided, aggregate) - mixed, seed),
    )


def _intervals(values: NDArray[np.float64], seed: int) -> dict[str, Interval]:
    """By selector, of values as _selector_values gives them. The interval of a paired difference is that of the mean of
    the differences by problem."""
    return dict(zip(SELECTORS, bootstrap_means(values, seed), strict=True))


def _over_all(groups: Sequence[Group], aggregate: str) -> NDArray[np.float64]:
    """As _selector_values, with all candidates of each group."""
    everyone = (np.ones((1, len(group.candidates)), dtype=bool) for group in groups)
    parts = [_means(choices([group], aggregate), inside) for group, inside in zip(groups, everyone, strict=True)]
    return np.concatenate(parts, axis=1)


def _selector_values(seen: Choices, n: int, seed: int) -> NDArray[np.float64]:
    """Accuracy of each selector (rows, in the table's order) on each problem (columns), over the subsets of size n."""
    problems, most = seen.answer_PM.shape
    subsets = _subsets(most, n, seed)
    inside_BM = np.zeros((len(subsets), most), dtype=bool)
    np.put_along_axis(inside_BM, np.array(subsets), True, axis=1)
    parts = [_means(seen.of(slice(start, start + CHUNK)), inside_BM) for start in range(0, problems, CHUNK)]
    return np.concatenate(parts, axis=1)


def _means(seen: Choices, inside_BM: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.array([select(seen, inside_BM).mean(axis=1) for select in SELECTORS.values()])


def _subsets(most: int, n: int, seed: int) -> list[tuple[int, ...]]:
    if math.comb(most, n) <= SUBSETS:
        return list(itertools.combinations(range(most), n))
    rng = random.Random(seed)
    return [tuple(sorted(rng.sample(range(most), n))) for _ in range(SUBSETS)]
