"""Hold what was collected for a training step: its groups, with counts and timings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmprm.types import Problem
from policy_rl.graded import GradedGroup, from_json, to_json


@dataclass(slots=True)
class Collected:
    """Contains the groups collected for a step, with counts and timings.

    `dropped` counts responses (aborted, unknown, untrainable, truncated) and groups (refused, few_known, too_hard,
    too_easy) by reason. `rounds` counts the sampling rounds. `passed` counts the groups that were sampled in this step
    and not dropped; `carried` counts the groups carried over to the next step. `progress` is the completed fraction of
    the run at the end of this step. `generating` is the time in seconds until the last response. `scoring` is the time
    after that, spent waiting for grades and process scores. `tokens` is the number of generated tokens, of which
    `branch_tokens` are those of continuations.
    """

    groups: list[GradedGroup] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    passed: int = 0
    carried: int = 0
    progress: float = 0.0
    tokens: int = 0
    branch_tokens: int = 0
    generating: float = 0.0
    scoring: float = 0.0
    refusal: str = ""
    """Error message for the first prompt that the engines rejected."""

    @property
    def reasons(self) -> str:
        """Return the counts of `dropped` for messages."""
        return ", ".join(f"{count} {name}" for name, count in self.dropped.items()) or "none dropped"

    def to_json(self) -> dict[str, Any]:
        """Serialize to JSON for a checkpoint."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {"groups": list(map(to_json, self.groups)), "dropped": dict(self.dropped), **counts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], problems: Mapping[str, Problem]) -> Collected:
        """Deserialize the output of `to_json`. `problems` maps ids to problems."""
        counts = {name: data[name] for name in _COUNTS if name in data}
        return cls([from_json(group, problems) for group in data["groups"]], Counter(data["dropped"]), **counts)


_COUNTS = ("rounds", "passed", "carried", "progress", "tokens", "branch_tokens", "refusal")
"""Fields of Collected that checkpoints store without conversion."""
