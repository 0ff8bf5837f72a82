"""Define the configuration of an annotation campaign."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mcts.search import SearchConfig
from mcts.solutions import SolutionsConfig
from mmprm.config import PathText
from mmprm.environments.load import EnvironmentConfig
from mmprm.sampling.policy import PolicyConfig
from mmprm.trackers import TrackerName


class CampaignConfig(PolicyConfig):
    """Configures an annotation campaign."""

    output: PathText = "runs/annotate"
    """Run folder with the store trees.sqlite and summary.json. An existing run is resumed."""
    solutions: SolutionsConfig | None = None
    """Solutions to label instead of running a tree search. The engine completes their prefixes, even if another model
    or a person wrote the solutions. If problems.path is not given, each row also holds its problem."""
    environment: EnvironmentConfig | None = None
    """Environment in which the policy plays the problems, instead of answering them. A step is then an action, and a
    rollout is correct if its episode succeeds; step_format and grader have no effect."""
    search: SearchConfig = SearchConfig()
    """Settings of the tree search."""
    workers: int | None = Field(None, ge=1)
    """Number of engines. By default one per GPU (or per group of tensor_parallel_size GPUs), or one per CPU core on a
    machine without GPUs. With engine.servers, the number of workers that run trees_in_flight searches each; by default
    one per URL."""
    trees_in_flight: int | None = Field(None, ge=1)
    """Number of problems that each worker searches concurrently. By default, the number is adapted to keep the engine
    busy."""
    commit_seconds: float = Field(0.5, gt=0)
    """Maximum time in seconds between two commits of finished batches to the store."""
    max_restarts: int = Field(3, ge=0)
    """Maximum number of times in a row that a worker may die and be replaced without finishing a batch. After that, the
    campaign continues without it. A problem whose engine dies more often than this while it is the only one on the
    engine is marked failed."""
    tracker: TrackerName | None = None
    """Experiment tracker to which progress is logged: wandb, mlflow, swanlab or trackio. Its package must be installed;
    without a login, it logs offline."""

    @model_validator(mode="before")
    @classmethod
    def _problems_of_solutions(cls, values: Any) -> Any:
        """Read the problems from the rows of the solutions, unless problems.path is given."""
        if not isinstance(values, dict) or not isinstance(values.get("solutions"), dict):
            return values
        problems = values.get("problems") or {}
        if not isinstance(problems, dict):
            return values
        return values | {"problems": {"path": values["solutions"].get("path")} | problems}

    @model_validator(mode="after")
    def _environment_fits(self) -> CampaignConfig:
        if self.environment is None:
            return self
        if self.solutions is not None:
            raise ValueError("solutions cannot be labeled in an environment; remove solutions or environment")
        if self.prompt.preset != "plain":
            raise ValueError(
                f"prompt.preset={self.prompt.preset} must be plain with an environment, whose observations are the "
                "prompt; set prompt.preset=plain, and prompt.user for instructions"
            )
        if self.engine.servers is not None:
            raise ValueError("engine.servers cannot play in an environment; remove it to use engines of this run")
        return self

    def resume_key(self) -> dict[str, Any]:
        """Return the settings that determine the sampled batches.

        A store has one resume key; all other settings may change when a run is resumed.
        """
        key = super().resume_key() | {"search": self.search.model_dump(mode="json")}
        if self.environment is not None:
            key["environment"] = self.environment.resume_key()
        return key if self.solutions is None else key | {"solutions": {"mode": self.solutions.mode}}
