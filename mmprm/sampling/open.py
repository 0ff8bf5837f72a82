"""Open a sampler from its configuration, importing only the backend that it selects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from mmprm.prompts import PromptConfig
from mmprm.sampling.config import START_TIMEOUT_SECONDS, EngineConfig, SamplingConfig
from mmprm.types import Sampler


@asynccontextmanager
async def open_sampler(
    engine: EngineConfig,
    sampling: SamplingConfig,
    prompt: PromptConfig,
    workers: int | None = None,
    start_timeout_seconds: float = START_TIMEOUT_SECONDS,
    reasoning: Literal["refuse", "join"] = "refuse",
) -> AsyncIterator[Sampler]:
    """Yield a sampler that uses `engine.servers` or, if none are set, `workers` local engines; close it on exit.

    `reasoning` is what happens to thoughts that servers return separately; see ServerSampler. Raises SamplingError if
    an engine finds no machine within `start_timeout_seconds`.
    """
    if engine.servers is not None:
        from mmprm.sampling.server_sampler import ServerSampler

        async with ServerSampler(engine, sampling, prompt, reasoning) as sampler:
            yield sampler
        return
    from mmprm.sampling.pool import SamplerPool

    pool = SamplerPool(engine, sampling, prompt, workers, wait=False, start_timeout_seconds=start_timeout_seconds)
    await pool.started()
    try:
        yield pool
    finally:
        pool.close()
