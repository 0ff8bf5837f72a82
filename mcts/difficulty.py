"""The difficulty of problems for a policy: a campaign that draws from the question alone, and the range to keep."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from mcts.config import CampaignConfig
from mcts.search import SearchConfig
from mmprm.errors import ConfigError
from mmprm.trees.store import Store
from mmprm.types import Counts, Problem


@dataclass(slots=True)
class Filtered:
    """The problems to keep with the verdicts of their samples, and the numbers of the others by what they are."""

    kept: list[tuple[Problem, Counts]] = field(default_factory=list)
    too_hard: int = 0
    too_easy: int = 0
    no_known_verdict: int = 0
    failed: int = 0


def question_only(config: CampaignConfig, samples: int) -> CampaignConfig:
    """The campaign that draws `samples` rollouts from every question and ends there: no other state fits its budget."""
    if samples < 1:
        raise ConfigError(f"samples={samples} must be at least 1; 8 tell problems that are always solved from others")
    search = SearchConfig(rollouts=samples, max_rollouts=samples, max_searches=1, shared=None)
    return config.model_copy(update={"search": search})


def check_range(low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"low={low}, high={high} must be 0 ≤ low ≤ high ≤ 1; 0.1 and 0.9 leave out always and never")


def by_accuracy(store: Store, asked: Set[str], low: float, high: float) -> Filtered:
    """Of the problems `asked`, keep those with low ≤ right / (right + wrong) ≤ high of the samples drawn from the
    question. The store may hold others, of an earlier file."""
    filtered = Filtered(failed=len(asked & set(store.ids("failed"))))
    for problem_id in store.ids("done"):
        if problem_id not in asked:
            continue
        counts = store.tree(problem_id).nodes[0].counts
        if counts.value is None:
            filtered.no_known_verdict += 1
        elif counts.value < low:
            filtered.too_hard += 1
        elif counts.value > high:
            filtered.too_easy += 1
        else:
            filtered.kept.append((store.problem(problem_id), counts))
    return filtered
