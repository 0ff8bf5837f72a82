"""Configure the rollout engines, and derive the seeds of rollouts."""

from __future__ import annotations

from pydantic import Field

from mmprm.config import Config
from mmprm.errors import ConfigError
from mmprm.sampling.config import SamplingConfig
from mmprm.sampling.seeds import derive_seed


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


def rollout_seed(run_seed: int, version: int, problem_id: str, attempt: int = 0) -> int:
    """Return the seed for sampling a problem with policy version `version`.

    `attempt` is the number of times that this version has already sampled the problem.
    """
    return derive_seed(run_seed, problem_id, f"rollout {version}", attempt)


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
