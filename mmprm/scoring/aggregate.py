"""Turning the step scores p_1 … p_S of a solution into one number: a table of functions.

Which one is best depends on the labels and the policy, so that the choice is made on a development set and kept in
prm.json. Sources: OmegaPRM and Math-Shepherd (min, product), Qwen2.5-Math-PRM (last, product), MM-PRM (the others).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mmprm.errors import ConfigError

EPSILON = 1e-6
"""Logarithms and odds see p clipped to [EPSILON, 1 - EPSILON]; the other aggregators see p itself."""

Aggregator = Callable[[Sequence[float]], float]


def last(scores: Sequence[float]) -> float:
    """p_S"""
    return scores[-1]


def mean(scores: Sequence[float]) -> float:
    """(1/S) Σ p_s"""
    return sum(scores) / len(scores)


def sum_log(scores: Sequence[float]) -> float:
    """Σ ln p_s; the order is that of the product, without underflow."""
    return sum(math.log(_clip(score)) for score in scores)


def sum_log_odds(scores: Sequence[float]) -> float:
    """Σ ln(p_s / (1 - p_s))"""
    return sum(math.log(_odds(score)) for score in scores)


def mean_odds(scores: Sequence[float]) -> float:
    """(1/S) Σ p_s / (1 - p_s)"""
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
    try:
        return AGGREGATORS[name]
    except KeyError:
        raise ConfigError(f"aggregator={name!r} must be one of {', '.join(AGGREGATORS)}") from None


def chosen_aggregator(configured: str | None, stored: str | None) -> str:
    """The name to use: the configured one, else the one that the PRM's prm.json stores; never a silent default."""
    name = configured or stored
    if name is None:
        raise ConfigError(
            f"aggregator: prm.json names none; set one of {', '.join(AGGREGATORS)}, or let mmprm rerank "
            "--choose-aggregator find and store the best one on a development set"
        )
    aggregator(name)
    return name


def vote_weight(name: str, value: float) -> float:
    """The aggregate as a weight in [0, 1] for a vote: sums of logs through exp, log-odds and odds through the sigmoid,
    the others as they are. Each map is increasing, so that the order of solutions stays."""
    if name == "sum_log":
        return math.exp(value)
    if name == "sum_log_odds":
        return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))
    if name == "mean_odds":
        return value / (1 + value)
    return value


def _clip(score: float) -> float:
    return min(max(score, EPSILON), 1 - EPSILON)


def _odds(score: float) -> float:
    return _clip(score) / (1 - _clip(score))
