"""Workers of the driver's own process, for engines that are servers elsewhere: no Ray, no engine to start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mcts.config import CampaignConfig
from mcts.room import Load
from mcts.worker import LocalWorker
from mmprm.grading.open import open_grader
from mmprm.sampling.server_sampler import ServerSampler


@asynccontextmanager
async def server_workers(config: CampaignConfig) -> AsyncIterator[Callable[[int], Awaitable[LocalWorker]]]:
    """Gives the function that makes a worker by number; they share one client, which deals out the problems' URLs."""
    async with (
        open_grader(config.grader) as grader,
        ServerSampler(config.engine, config.sampling, config.prompt) as sampler,
    ):

        def load() -> Load:
            return Load(*sampler.load(), cache=0.0)  # what a server's cache holds it does not say

        async def make(number: int) -> LocalWorker:
            return LocalWorker(sampler, grader, config.markup, config.seed, config.search, load)

        yield make
