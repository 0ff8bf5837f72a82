"""Open a command's policy and grader; the model name `tiny` selects the built-in policy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from mmprm import actors
from mmprm.environments.episode import TurnSampler
from mmprm.environments.load import EnvironmentConfig
from mmprm.grading.open import open_grader
from mmprm.preflight import check_policy
from mmprm.sampling.config import EngineConfig, LocalEngineConfig
from mmprm.sampling.dtype import with_dtype
from mmprm.sampling.open import open_sampler
from mmprm.sampling.policy import PolicyConfig
from mmprm.types import Grader, Problem, Sampler

_P = TypeVar("_P", bound=PolicyConfig)


def model_path(model: str) -> str:
    """Return the built-in policy's folder for the name `tiny`, and any other model unchanged."""
    if model != "tiny":
        return model
    from mmprm.tiny.model import weights_path

    return str(weights_path())


def policy_folder(engine: LocalEngineConfig) -> str | None:
    """Return the built-in policy's folder if the local engines run that policy, or None if they do not."""
    if engine.model != "tiny" or (isinstance(engine, EngineConfig) and engine.servers is not None):
        return None
    return model_path(engine.model)


def with_engine_dtype(config: _P) -> _P:
    """Return the command's configuration with engine.dtype=auto replaced by the fastest data type."""
    engine = with_dtype(config.engine, config.ray_address, model_folder=policy_folder(config.engine))
    return config.model_copy(update={"engine": engine})


def check_config(config: PolicyConfig, problems: Sequence[Problem], samples: int, key: str) -> None:
    """Run the policy's preflight checks before any engine starts.

    `samples` is the number of completions per prompt, and `key` names its setting in error messages.
    """
    folder = policy_folder(config.engine)
    engine = config.engine if folder is None else config.engine.model_copy(update={"model": folder})
    check_policy(engine, config.sampling, config.prompt, problems, samples, key)


@contextmanager
def opened_player(config: PolicyConfig, environment: EnvironmentConfig) -> Iterator[TurnSampler]:
    """Yield the policy as a player of episodes, on one engine in this process, and close it when the `with` block
    ends."""
    from mmprm.sampling.vllm_turns import VllmTurnSampler

    folder = policy_folder(config.engine)
    engine = config.engine if folder is None else config.engine.model_copy(update={"model": folder})
    sampler = VllmTurnSampler(engine, config.sampling, config.prompt, environment)
    try:
        yield sampler
    finally:
        sampler.close()


@asynccontextmanager
async def opened_policy(config: PolicyConfig) -> AsyncIterator[tuple[Sampler, Grader]]:
    """Yield the sampler and the grader, and close them when the `with` block ends."""
    folder = policy_folder(config.engine)
    if config.engine.servers is None:
        actors.connect(config.ray_address)
    engine = config.engine if folder is None else config.engine.model_copy(update={"model": folder})
    async with (
        open_sampler(engine, config.sampling, config.prompt, config.workers, config.start_timeout_seconds) as sampler,
        open_grader(config.grader) as grader,
    ):
        yield sampler, grader
