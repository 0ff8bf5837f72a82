"""Run campaign workers for remote engine servers in the driver's process, without Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mcts.capacity import Load
from mcts.config import CampaignConfig
from mcts.worker import LocalWorker
from mmprm.grading.open import open_grader
from mmprm.sampling.server_sampler import ServerSampler


@asynccontextmanager
async def server_workers(config: CampaignConfig) -> AsyncIterator[Callable[[int], Awaitable[LocalWorker]]]:
    """Yield a function that creates worker number n.

    The workers share one HTTP client, which distributes the problems over the URLs.
    """
    async with (
        open_grader(config.grader) as grader,
        ServerSampler(config.engine, config.sampling, config.prompt) as sampler,
    ):

        def load() -> Load:
            return Load(*sampler.load(), cache=0.0)  # servers do not report the usage of their KV cache

        async def make(number: int) -> LocalWorker:
            return LocalWorker(sampler, grader, config.step_format, config.seed, config.search, load)

        yield make
