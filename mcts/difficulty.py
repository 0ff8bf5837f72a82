"""Measure how difficult problems are for a policy by sampling complete solutions, and filter by difficulty."""

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
    """Contains the kept problems with their verdict counts, and the number of excluded problems per reason."""

    kept: list[tuple[Problem, Counts]] = field(default_factory=list)
    too_hard: int = 0
    too_easy: int = 0
    no_known_verdict: int = 0
    failed: int = 0


def question_only(config: CampaignConfig, samples: int) -> CampaignConfig:
    """Derive a configuration that samples `samples` rollouts per question and skips the tree search.

    The root uses up the rollout budget, so no other state is sampled.
    """
    if samples < 1:
        raise ConfigError(f"samples={samples} must be at least 1; use 8 or more to detect problems always solved")
    if config.solutions is not None:
        raise ConfigError("solutions is a key of mmprm annotate, because mmprm filter samples its own; leave it out")
    search = SearchConfig(rollouts=samples, max_rollouts=samples, max_searches=1, min_shared_rollouts=None)
    return config.model_copy(update={"search": search})


def check_range(low: float, high: float) -> None:
    """Raise ConfigError unless 0 ≤ low ≤ high ≤ 1."""
    if not 0 <= low <= high <= 1:
        raise ConfigError(
            f"low={low}, high={high} must satisfy 0 ≤ low ≤ high ≤ 1; for example, low=0.1 and high=0.9 drop problems "
            "that are never or always solved"
        )


def by_accuracy(store: Store, asked: Set[str], low: float, high: float) -> Filtered:
    """Keep the problems in `asked` whose accuracy is in [low, high], and count the others by reason.

    Accuracy is correct / (correct + incorrect) over the samples of the question. The store may also hold problems of
    an earlier file, which are ignored.
    """
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
