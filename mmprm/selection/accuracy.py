"""Compute accuracy by number of samples for every selector, with paired bootstrap intervals over problems.

Shapes: P problem, N number of samples that a selector chooses from, K selector, M sample of a problem, B subset of
samples.
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
"""Maximum number of subsets of size N to evaluate; if there are more, this many are sampled with the seed."""

_CHUNK = 64
"""Number of problems computed together, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class AccuracyAtN:
    """Holds the selectors' accuracies with N samples, and their differences to two baselines."""

    n: int
    accuracy: dict[str, Interval]
    minus_random: dict[str, Interval]
    minus_majority: dict[str, Interval]


def sizes_up_to(most: int) -> list[int]:
    """Return 1, 2, 4, … up to `most`, and `most` itself."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


def accuracy_at_n(
    groups: Sequence[CandidateGroup], aggregate: str | None, sizes: Sequence[int] = (1, 2, 4, 8), seed: int = 0
) -> list[AccuracyAtN]:
    """Return one AccuracyAtN per entry of `sizes`, from groups of M ≥ max(sizes) candidates each.

    A problem's accuracy at N is the mean over all subsets of N of its M candidates, or over SUBSETS sampled ones if
    there are more. All selectors see the same subsets, and ties are split evenly. At N = M it is the selector's choice
    among all candidates. Without an aggregator, only selectors that need no scores are compared. Intervals are
    percentile bootstraps over problems.
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
    # All rows share the resamples, so the interval of a difference takes the pairing by problem into account.
    compared = [values_NKP, *(values_NKP - values_NKP[:, [k]] for k in baselines)]
    intervals = iter(bootstrap_means(np.concatenate(compared, axis=1).reshape(-1, len(groups)), seed))

    def by_selector() -> dict[str, Interval]:
        return {name: next(intervals) for name in names}

    return [AccuracyAtN(n, by_selector(), by_selector(), by_selector()) for n in sizes]


def accuracy(groups: Sequence[CandidateGroup], aggregate: str, seed: int = 0) -> dict[str, Interval]:
    """Return each selector's accuracy when it chooses among all candidates of a group; group sizes may differ."""
    return _intervals(_over_all(groups, aggregate), seed)


@dataclass(frozen=True, slots=True)
class EqualTokens:
    """Compares another strategy with best-of-n at an equal number of generated tokens.

    `n` may lie between two numbers of samples, whose accuracies are then interpolated. `tokens` is the number of tokens
    per problem of both. `difference` is the strategy's accuracy minus that of best-of-n, paired by problem. If the
    samples have fewer tokens than the strategy, `n` is the number of samples and `tokens` are theirs.
    """

    n: float
    tokens: float
    accuracy: dict[str, Interval]
    difference: dict[str, Interval]


def at_equal_tokens(
    guided: Sequence[CandidateGroup], tokens: int, samples: Sequence[CandidateGroup], aggregate: str, seed: int = 0
) -> EqualTokens:
    """Compare a strategy's groups, which took `tokens` tokens in total, with independent samples of the same problems.

    n = tokens / (tokens of all samples / samples per problem), clipped to [1, samples per problem].
    """
    assert [group.problem.id for group in guided] == [group.problem.id for group in samples], "the same problems"
    most = common_size(samples)
    each = sum(candidate.token_count for group in samples for candidate in group.candidates) / most
    # Best-of-n is only known from 1 to `most`: a cheaper or dearer strategy is compared with an end of this range.
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
    """Return intervals by selector from values as _selector_values returns them.

    For paired differences, the interval is that of the mean of the differences per problem.
    """
    return dict(zip(SELECTORS, bootstrap_means(values, seed), strict=True))


def _over_all(groups: Sequence[CandidateGroup], aggregate: str) -> NDArray[np.float64]:
    """Return values as _selector_values does, with all candidates of each group."""
    everyone = (np.ones((1, len(group.candidates)), dtype=bool) for group in groups)
    parts = [_means(choices([group], aggregate), inside) for group, inside in zip(groups, everyone, strict=True)]
    return np.concatenate(parts, axis=1)


def _selector_values(seen: Choices, n: int, seed: int, names: Sequence[str] = tuple(SELECTORS)) -> NDArray[np.float64]:
    """Return each selector's accuracy (rows) on each problem (columns), averaged over subsets of size n."""
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
    # The same subsets for every problem and selector: differences between selectors then have less variance.
    rng = random.Random(seed)
    return [tuple(sorted(rng.sample(range(most), n))) for _ in range(SUBSETS)]
