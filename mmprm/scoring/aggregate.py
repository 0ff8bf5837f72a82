"""Aggregate the step scores p_1 … p_S of a solution into one number.

Which aggregator is best depends on the labels and the policy, so it is chosen on a development set and stored in
prm.json. Sources: OmegaPRM and Math-Shepherd (min, product), Qwen2.5-Math-PRM (last, product), MM-PRM (the others).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mmprm.errors import ConfigError

MIN_PROBABILITY = 1e-6
"""Bound for logarithms and odds, which clip p to [MIN_PROBABILITY, 1 - MIN_PROBABILITY]; other aggregators use p
itself."""

Aggregator = Callable[[Sequence[float]], float]


def last(scores: Sequence[float]) -> float:
    """Return p_S."""
    return scores[-1]


def mean(scores: Sequence[float]) -> float:
    """Return (1/S) Σ p_s."""
    return sum(scores) / len(scores)


def sum_log(scores: Sequence[float]) -> float:
    """Return Σ ln p_s, which orders solutions as the product does, without underflow."""
    return sum(math.log(_clip(score)) for score in scores)


def sum_log_odds(scores: Sequence[float]) -> float:
    """Return Σ ln(p_s / (1 - p_s))."""
    return sum(math.log(_odds(score)) for score in scores)


def mean_odds(scores: Sequence[float]) -> float:
    """Return (1/S) Σ p_s / (1 - p_s)."""
    return sum(_odds(score) for score in scores) / len(scores)


AGGREGATORS: dict[str, Aggregator] = {
    "min": min,
    "last": last,
    "mean": mean,
    "max": max,
    "product": math.prod,
    "sum_log": sum_log,
    "sum_log_odds": sum_log_odds,
    "mean_odds": mean_odds,
}


def aggregator(name: str) -> Aggregator:
    """Return the aggregator of this name. Raises ConfigError for an unknown one."""
    try:
        return AGGREGATORS[name]
    except KeyError:
        raise ConfigError(f"aggregator={name!r} is not an aggregator; set one of {', '.join(AGGREGATORS)}") from None


def chosen_aggregator(configured: str | None, stored: str | None) -> str:
    """Return the aggregator to use: the configured one, or else the one stored in prm.json. Raises ConfigError if
    there is neither, since there is no default."""
    name = configured or stored
    if name is None:
        raise ConfigError(
            f"aggregator is not set and prm.json names none; set one of {', '.join(AGGREGATORS)}, or let mmprm rerank "
            "--choose-aggregator find and store the best one on a development set"
        )
    aggregator(name)
    return name


def vote_weight(name: str, value: float) -> float:
    """Map an aggregate to a voting weight: sums of logs through exp, log-odds and odds through the sigmoid, all others
    unchanged.

    Weights lie in [0, 1]. Every map is increasing, so the order of solutions is preserved.
    """
    if name == "sum_log":
        return math.exp(value)
    if name == "sum_log_odds":
        return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))
    if name == "mean_odds":
        return value / (1 + value)
    return value


def _clip(score: float) -> float:
    return min(max(score, MIN_PROBABILITY), 1 - MIN_PROBABILITY)


def _odds(score: float) -> float:
    return _clip(score) / (1 - _clip(score))
