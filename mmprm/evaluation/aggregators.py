"""Choosing the aggregator by evidence: best-of-N accuracy of each one on a development set; and what a PRM knows of its
own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmprm.metrics import Interval, bootstrap_means
from mmprm.prm.info import AggregatorEvidence, PrmInfo
from mmprm.scoring.aggregate import AGGREGATORS
from mmprm.selection.groups import Group, choices, common_size
from mmprm.selection.selectors import best_of_n

RAISED_LATE = {"last", "mean", "max", "sum_log_odds", "mean_odds"}
"""Aggregators that a high score behind the first error raises. The others (min, product, sum_log) only fall."""


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
    everyone = np.ones((1, n), dtype=bool)
    values_AP = [best_of_n(choices(development, name), everyone)[:, 0] for name in AGGREGATORS]
    candidates = dict(zip(AGGREGATORS, bootstrap_means(values_AP, seed), strict=True))
    name = max(candidates, key=lambda key: candidates[key].value)
    return AggregatorChoice(name, n, len(development), candidates[name], candidates)


def with_choice(info: PrmInfo, choice: AggregatorChoice) -> PrmInfo:
    """prm.json with the chosen aggregator and its evidence."""
    found = choice.accuracy
    evidence = AggregatorEvidence(
        problems=choice.problems, samples=choice.n, value=found.value, low=found.low, high=found.high
    )
    return info.model_copy(update={"aggregator": choice.name, "aggregator_evidence": evidence})


def described(name: str, info: PrmInfo) -> str:
    """The aggregator in use with its evidence, as it stands beside scores."""
    evidence = info.aggregator_evidence
    if name != info.aggregator:
        return f"{name}, as configured; prm.json names {info.aggregator or 'none'}"
    if evidence is None:
        return f"{name}, from prm.json, which holds no evidence for it"
    interval = f"{evidence.value:.3f} [{evidence.low:.3f}, {evidence.high:.3f}]"
    return f"{name}, chosen on {evidence.problems} problems: best-of-{evidence.samples} {interval}"


def misgiving(name: str, info: PrmInfo) -> str | None:
    """What speaks against an aggregator that no evidence chose: a PRM that was trained without the steps behind the
    first error gives them scores that mean nothing."""
    proven = name == info.aggregator and info.aggregator_evidence is not None
    if proven or info.labels.get("after_error") != "mask" or name not in RAISED_LATE:
        return None
    others = ", ".join(sorted(AGGREGATORS.keys() - RAISED_LATE))
    return (
        f"aggregator {name} counts the steps behind the first error, which this PRM was trained without "
        f"(after_error: mask), so that a score that means nothing can raise a wrong solution; {others} cannot be "
        "raised so, and mmprm rerank --choose-aggregator measures them all"
    )
