"""Aggregate the step scores p_1 … p_S of a solution into one number.

The best aggregator depends on the labels and the policy, so it is chosen on a development set and stored in prm.json.
Sources: OmegaPRM and Math-Shepherd (min, product), Qwen2.5-Math-PRM (last, product), MM-PRM (the others).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mmprm.errors import ConfigError

MIN_PROBABILITY = 1e-6
"""Lower bound for clipping: aggregators with logarithms or odds clip p to [MIN_PROBABILITY, 1 - MIN_PROBABILITY]."""

Aggregator = Callable[[Sequence[float]], float]


def last(scores: Sequence[float]) -> float:
    """Return p_S, the score of the last step."""
    return scores[-1]


def mean(scores: Sequence[float]) -> float:
    """Return the mean score, (1/S) Σ p_s."""
    return sum(scores) / len(scores)


def sum_log(scores: Sequence[float]) -> float:
    """Return Σ ln p_s, which ranks solutions like the product but does not underflow."""
    return sum(math.log(_clip(score)) for score in scores)


def sum_log_odds(scores: Sequence[float]) -> float:
    """Return the sum of log-odds, Σ ln(p_s / (1 - p_s))."""
    return sum(math.log(_odds(score)) for score in scores)


def mean_odds(scores: Sequence[float]) -> float:
    """Return the mean odds, (1/S) Σ p_s / (1 - p_s)."""
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
    """Look up an aggregator by name. Raises ConfigError for an unknown name."""
    try:
        return AGGREGATORS[name]
    except KeyError:
        raise ConfigError(f"aggregator={name!r} is not an aggregator; set one of {', '.join(AGGREGATORS)}") from None


def chosen_aggregator(configured: str | None, stored: str | None) -> str:
    """Return the name of the configured aggregator or, if none is configured, of the one stored in prm.json.

    Raises ConfigError if there is neither, because there is no default.
    """
    name = configured or stored
    if name is None:
        raise ConfigError(
            f"aggregator is not set and prm.json names none; set one of {', '.join(AGGREGATORS)}, or let mmprm rerank "
            "--choose-aggregator find and store the best one on a development set"
        )
    aggregator(name)
    return name


def vote_weight(name: str, value: float) -> float:
    """Convert an aggregated score to a weight in [0, 1] for weighted voting.

    sum_log is mapped through exp, sum_log_odds through the sigmoid, and mean_odds through x / (1 + x); all others are
    unchanged. Every map is increasing, so the order of solutions is preserved.
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
