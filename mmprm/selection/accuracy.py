"""Compute each selector's accuracy as a function of the number of samples, with paired bootstrap intervals.

Shapes: P problem, N number of samples to choose from, K selector, M sample of a problem, B subset of samples.
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
from mmprm.selection.groups import CandidateGroup, choices, common_size
from mmprm.selection.selectors import SELECTORS, Choices, selector_names

SUBSETS = 256
"""Maximum number of subsets of N samples to evaluate; if there are more, this many are drawn at random."""

_CHUNK = 64
"""Number of problems processed at once, to bound memory use."""


@dataclass(frozen=True, slots=True)
class AccuracyAtN:
    """Holds the accuracy of each selector with `n` samples, and how much it differs from `random` and `majority`."""

    n: int
    accuracy: dict[str, Interval]
    minus_random: dict[str, Interval]
    minus_majority: dict[str, Interval]


def sizes_up_to(most: int) -> list[int]:
    """Return the powers of two up to `most`, and `most` itself, in ascending order."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


def accuracy_at_n(
    groups: Sequence[CandidateGroup], aggregate: str | None, sizes: Sequence[int] = (1, 2, 4, 8), seed: int = 0
) -> list[AccuracyAtN]:
    """Compute one AccuracyAtN per entry of `sizes` from groups of M ≥ max(sizes) candidates each.

    A problem's accuracy at N is the mean over all subsets of N of its M candidates, or over SUBSETS random ones. All
    selectors see the same subsets, and ties are split evenly. At N = M, the selector chooses among all candidates. If
    `aggregate` is None, only selectors that need no scores are compared. Intervals are percentile bootstrap intervals
    over problems.
    """
    most = common_size(groups)
    if incorrect := [n for n in sizes if not 1 <= n <= most]:
        raise ConfigError(
            f"sizes={list(sizes)}: {incorrect[0]} must be between 1 and {most}, the number of samples per problem; "
            "remove it, or sample more"
        )
    seen = choices(groups, aggregate)
    names = selector_names(scored=aggregate is not None)
    values_NKP = np.array([_selector_values(seen, n, seed, names) for n in sizes])
    baselines = [names.index(name) for name in ("random", "majority")]
    # All rows share the resamples, so intervals of differences account for the pairing by problem.
    compared = [values_NKP, *(values_NKP - values_NKP[:, [k]] for k in baselines)]
    intervals = iter(bootstrap_means(np.concatenate(compared, axis=1).reshape(-1, len(groups)), seed))

    def by_selector() -> dict[str, Interval]:
        return {name: next(intervals) for name in names}

    return [AccuracyAtN(n, by_selector(), by_selector(), by_selector()) for n in sizes]


def accuracy(groups: Sequence[CandidateGroup], aggregate: str, seed: int = 0) -> dict[str, Interval]:
    """Compute each selector's accuracy when it chooses among all candidates of a group. Group sizes may differ."""
    return _intervals(_over_all(groups, aggregate), seed)


@dataclass(frozen=True, slots=True)
class EqualTokens:
    """Compares another strategy with best-of-n at an equal number of generated tokens.

    `n` may be fractional; accuracies are then interpolated between the two nearest sample counts. `tokens` is the
    number of tokens per problem for both. `difference` is the strategy's accuracy minus that of best-of-n, paired by
    problem. If the samples have fewer tokens than the strategy, `n` is the number of samples and `tokens` is their
    token count.
    """

    n: float
    tokens: float
    accuracy: dict[str, Interval]
    difference: dict[str, Interval]


def at_equal_tokens(
    guided: Sequence[CandidateGroup], tokens: int, samples: Sequence[CandidateGroup], aggregate: str, seed: int = 0
) -> EqualTokens:
    """Compare a guided strategy with best-of-n on independent samples of the same problems, at equal token counts.

    `tokens` is the number of tokens that the strategy generated in total.
    n = tokens / (tokens of all samples / samples per problem), clipped to [1, samples per problem].
    """
    assert [group.problem.id for group in guided] == [group.problem.id for group in samples], "the same problems"
    most = common_size(samples)
    each = sum(candidate.token_count for group in samples for candidate in group.candidates) / most
    # Best-of-n is only known for n from 1 to `most`; cheaper or costlier strategies are compared with the nearest end.
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
    """Return, for each selector (row), the bootstrap interval of the mean of its values over problems (columns).

    For paired differences, this is the interval of the mean difference per problem.
    """
    return dict(zip(SELECTORS, bootstrap_means(values, seed), strict=True))


def _over_all(groups: Sequence[CandidateGroup], aggregate: str) -> NDArray[np.float64]:
    """Compute each selector's accuracy on each problem, with all candidates of each group."""
    everyone = (np.ones((1, len(group.candidates)), dtype=bool) for group in groups)
    parts = [_means(choices([group], aggregate), inside) for group, inside in zip(groups, everyone, strict=True)]
    return np.concatenate(parts, axis=1)


def _selector_values(seen: Choices, n: int, seed: int, names: Sequence[str] = tuple(SELECTORS)) -> NDArray[np.float64]:
    """Compute the accuracy of each selector (rows) on each problem (columns), averaged over subsets of size n."""
    problems, most = seen.answer_PM.shape
    subsets = _subsets(most, n, seed)
    inside_BM = np.zeros((len(subsets), most), dtype=bool)
    np.put_along_axis(inside_BM, np.array(subsets), True, axis=1)
    parts = [_means(seen.of(slice(start, start + _CHUNK)), inside_BM, names) for start in range(0, problems, _CHUNK)]
    return np.concatenate(parts, axis=1)


def _means(seen: Choices, inside_BM: NDArray[np.bool_], names: Sequence[str] = tuple(SELECTORS)) -> NDArray[np.float64]:
    return np.array([SELECTORS[name](seen, inside_BM).mean(axis=1) for name in names])


def _subsets(most: int, n: int, seed: int) -> list[tuple[int, ...]]:
    if math.comb(most, n) <= SUBSETS:
        return list(itertools.combinations(range(most), n))
    # Using the same subsets for every problem and selector reduces the variance of differences.
    rng = random.Random(seed)
    return [tuple(sorted(rng.sample(range(most), n))) for _ in range(SUBSETS)]
