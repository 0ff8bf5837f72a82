"""Configure the rollout engines, and derive the seeds of rollouts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmprm.config import Config
from mmprm.errors import ConfigError
from mmprm.sampling.config import SamplingConfig
from mmprm.sampling.seeds import derive_seed


class BranchingConfig(Config):
    """Configures the continuations from which the values of response prefixes are estimated."""

    continuations: int = Field(4, ge=1)
    """Number of continuations to sample from each chosen prefix."""
    choose: Literal["surprisal", "undecided", "first"] = "surprisal"
    """Rule that chooses the prefixes, each of which ends with a step. surprisal: those whose last step has the highest
    mean negative log-probability per token; undecided: those whose PRM score is closest to 0.5 and in [min_score,
    max_score]; first: those of the group's first responses. No rule reads what follows the prefix, which would bias the
    credit."""
    max_per_step: int = Field(1, ge=1)
    """Maximum number of prefixes per group to continue that have the same number of steps."""
    min_score: float = Field(0.2, ge=0, le=1)
    """Minimum PRM score of a prefix with choose=undecided."""
    max_score: float = Field(0.8, ge=0, le=1)
    """Maximum PRM score of a prefix with choose=undecided."""
    token_budget: int | None = Field(None, ge=1)
    """Maximum total number of tokens in a group's continuations. A prefix is chosen only if its continuations would fit
    even at their maximum length. By default, the maximum length of the group's own responses together. For episodes,
    only the tokens of actions count."""
    train: bool = True
    """Train on the continuations, too. If false, they only determine values. With credit.source=prm, they are never
    trained on."""
    groups: float = Field(1.0, ge=0.001, le=1)
    """Fraction of the groups whose responses branch, chosen by a hash of the problem and the policy version."""
    store: bool = False
    """Keep the trees of the groups whose responses branch in the run folder, as trees/trees.sqlite, which mmprm labels
    reads. With credit.source=prm, this is what the continuations are for."""

    @model_validator(mode="after")
    def _range_belongs_to_undecided(self) -> BranchingConfig:
        for key in ("min_score", "max_score"):
            if key in self.model_fields_set and self.choose != "undecided":
                raise ValueError(
                    f"{key}={getattr(self, key)} is a bound for choose=undecided; set that, or leave {key} out"
                )
        if self.min_score > self.max_score:
            raise ValueError(
                f"min_score={self.min_score} must not exceed max_score={self.max_score}; lower min_score or raise "
                "max_score"
            )
        return self


class RolloutConfig(Config):
    """Configures the rollout engines."""

    engines: int | None = Field(None, ge=1)
    """Number of engines. Default on CPU: one per core. Default with GPUs: one per GPU (or group of tensor_parallel_size
    GPUs on one machine) that the trainer's ranks and the PRM leave free. Default with `colocated`: one per GPU of the
    ranks."""
    colocated: bool = False
    """Run engines on the trainer's GPUs. They sleep, which frees their memory, while the trainer works."""
    start_timeout_seconds: float = Field(1800, gt=0)
    """Maximum time in seconds to wait for an engine to start."""
    sample_timeout_seconds: float = Field(3600, gt=0)
    """Maximum time in seconds to wait for the responses to one problem. After that, the engine is treated as dead."""
    max_restarts: int = Field(3, ge=0)
    """Maximum number of dead engines to replace; when another one dies, the run ends. If weights are sent from GPU to
    GPU, no engine is replaced."""
    branching: BranchingConfig | None = None
    """Continue the responses of a group from some of their prefixes. Requires credit.source=tree or both, or
    branching.store. By default, responses do not branch."""


def rollout_seed(run_seed: int, version: int, problem_id: str, attempt: int = 0) -> int:
    """Return the seed for sampling a problem with policy version `version`.

    `attempt` is the number of times that this version has already sampled the problem.
    """
    return derive_seed(run_seed, problem_id, f"rollout {version}", attempt)


def branch_seed(group_seed: int, problem_id: str, response: int, tokens: int) -> int:
    """Return the seed for continuing a prefix of `tokens` tokens of a response. `group_seed` is the group's seed."""
    return derive_seed(group_seed, problem_id, f"branch {response}", tokens)


def may_branch(config: BranchingConfig, run_seed: int, version: int, problem_id: str) -> bool:
    """Return whether the responses to a problem branch if policy version `version` samples them."""
    position = derive_seed(run_seed, problem_id, f"branches {version}", 0) % 1000
    return position < round(1000 * config.groups)


def check_sampling(sampling: SamplingConfig) -> None:
    """Raise ConfigError for sampling settings whose distribution the trainer cannot compute, such as top_p < 1."""
    rules = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    for key, neutral in rules.items():
        if getattr(sampling, key) != neutral:
            raise ConfigError(
                f"sampling.{key}={getattr(sampling, key)} must be {neutral:g} in RL: the ratio of new to old "
                "probability refers to the whole distribution; leave it out and set only sampling.temperature"
            )
    if sampling.temperature == 0:
        raise ConfigError("sampling.temperature=0 must be above 0 in RL: a group needs different responses; try 1.0")
