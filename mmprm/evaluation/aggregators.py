"""Choose a PRM's aggregator by best-of-N accuracy on a development set, and describe the evidence for the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmprm.metrics import Interval, bootstrap_means
from mmprm.prm.info import AggregatorEvidence, JudgeInfo, PrmInfo
from mmprm.scoring.aggregate import AGGREGATORS
from mmprm.selection.groups import CandidateGroup, choices, common_size
from mmprm.selection.selectors import best_of_n

RAISED_LATE = {"last", "mean", "max", "sum_log_odds", "mean_odds"}
"""Aggregators whose result can rise after the first error if later steps score high. The others (min, product, sum_log)
can only fall."""


@dataclass(frozen=True, slots=True)
class AggregatorChoice:
    """Holds the chosen aggregator and every candidate's best-of-N accuracy on the development set."""

    name: str
    n: int
    problems: int
    accuracy: Interval
    candidates: dict[str, Interval]


def choose_aggregator(development: Sequence[CandidateGroup], seed: int = 0) -> AggregatorChoice:
    """Choose the aggregator with the highest best-of-N accuracy over groups of N scored candidates.

    Ties go to the first aggregator in AGGREGATORS.
    """
    n = common_size(development)
    everyone = np.ones((1, n), dtype=bool)
    values_AP = [best_of_n(choices(development, name), everyone)[:, 0] for name in AGGREGATORS]
    candidates = dict(zip(AGGREGATORS, bootstrap_means(values_AP, seed), strict=True))
    name = max(candidates, key=lambda key: candidates[key].value)
    return AggregatorChoice(name, n, len(development), candidates[name], candidates)


def with_choice(info: PrmInfo, choice: AggregatorChoice) -> PrmInfo:
    """Return prm.json's content updated with the chosen aggregator and its evidence."""
    found = choice.accuracy
    # The evidence is stored with the PRM to show later users how certain the choice is.
    evidence = AggregatorEvidence(
        problems=choice.problems, samples=choice.n, value=found.value, low=found.low, high=found.high
    )
    return info.model_copy(update={"aggregator": choice.name, "aggregator_evidence": evidence})


def described(name: str, info: PrmInfo) -> str:
    """Describe the aggregator in use and the evidence on which it was chosen, for display next to scores."""
    evidence = info.aggregator_evidence
    if isinstance(info, JudgeInfo):
        return f"{name}, the default for a judge" if name == info.aggregator else f"{name}, as configured"
    if name != info.aggregator:
        return f"{name}, as configured; prm.json has {info.aggregator or 'none'}"
    if evidence is None:
        return f"{name}, from prm.json, which records no evidence for it"
    interval = f"{evidence.value:.3f} [{evidence.low:.3f}, {evidence.high:.3f}]"
    return f"{name}, chosen on {evidence.problems} problems: best-of-{evidence.samples} {interval}"


def misgiving(name: str, info: PrmInfo) -> str | None:
    """Return a warning if the aggregator was chosen without evidence and can reward steps after the first error.

    Otherwise returns None. A PRM trained without steps after the first error gives such steps arbitrary scores.
    """
    proven = name == info.aggregator and info.aggregator_evidence is not None
    if proven or info.labels.get("after_error") != "mask" or name not in RAISED_LATE:
        return None
    others = ", ".join(sorted(AGGREGATORS.keys() - RAISED_LATE))
    return (
        f"aggregator {name} uses the scores of steps after the first error. This PRM was trained without such steps "
        "(after_error: mask), so an arbitrary score can raise the value of an incorrect solution. Use one of "
        f"{others}, which only fall, or compare all with mmprm rerank --choose-aggregator"
    )
