"""From configuration to a sampler; only the chosen kind is imported."""

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
    """A sampler on `engine.servers`, or else on `workers` engines of our own, for as long as the block lasts."""
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
