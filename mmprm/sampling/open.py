"""Open a sampler from its configuration, importing only the backend that it selects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.types import Sampler


@asynccontextmanager
async def open_sampler(
    engine: EngineConfig, sampling: SamplingConfig, prompt: PromptConfig, workers: int | None = None
) -> AsyncIterator[Sampler]:
    """Open a sampler on `engine.servers`, or on `workers` local engines if none are set; close it on exit."""
    if engine.servers is not None:
        from mmprm.sampling.server_sampler import ServerSampler

        async with ServerSampler(engine, sampling, prompt) as sampler:
            yield sampler
        return
    from mmprm.sampling.pool import SamplerPool

    pool = SamplerPool(engine, sampling, prompt, workers, wait=False)
    await pool.started()
    try:
        yield pool
    finally:
        pool.close()
