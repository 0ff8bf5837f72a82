"""Everything that one annotation campaign can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mcts.search import SearchConfig
from mmprm.config import PathText
from mmprm.sampling.policy import PolicyConfig


class CampaignConfig(PolicyConfig):
    run: PathText = "runs/annotate"
    """Run folder: the store trees.sqlite and summary.json. A run that is there goes on where it was."""
    search: SearchConfig = SearchConfig()
    """The tree search of each problem."""
    workers: int | None = Field(None, ge=1)
    """Engines; by default one a GPU (group of tensor_parallel_size GPUs), without a GPU one a core. With engine.servers
    groups of trees_in_flight searches; by default one a URL."""
    trees_in_flight: int | None = Field(None, ge=1)
    """Problems that one worker searches at the same time; by default as many as keep its engine busy."""
    commit_seconds: float = Field(0.5, gt=0)
    """Finished batches are made durable in groups, this often or oftener."""
    worker_restarts: int = Field(3, ge=0)
    """Times that a worker may die and be replaced without having finished a batch in between; then the others go on
    without it. A problem that an engine dies of so often, alone with it, is marked failed."""

    def identity(self) -> dict[str, Any]:
        """What decides the batches. A store holds one identity; the rest may change between its runs."""
        return super().identity() | {"search": self.search.model_dump(mode="json")}
