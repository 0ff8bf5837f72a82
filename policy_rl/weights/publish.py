"""Publish the trainer's weights to the engines, and notice engines that die meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import torch

from mmprm.errors import EngineStoppedError, TrainingError
from policy_rl.trainer.protocol import TrainerLike

REPORT_SECONDS = 10.0
"""Number of seconds to wait for the trainer to report a failed transfer itself, after an engine was found dead."""


class WatchedPool(Protocol):
    """Defines the part of RolloutPool that `publish_watched` uses."""

    probe_token_ids: tuple[int, ...]

    async def until_lost(self) -> EngineStoppedError:
        """Wait until an engine dies, and return why."""
        ...


async def publish_watched(trainer: TrainerLike, pool: WatchedPool, version: int, dtype: torch.dtype) -> Any:
    """Publish the weights; if an engine dies meanwhile, kill the ranks, which would otherwise wait for it forever."""
    publishing = asyncio.ensure_future(asyncio.to_thread(trainer.publish, version, pool.probe_token_ids, dtype))
    lost = asyncio.ensure_future(pool.until_lost())
    try:
        await asyncio.wait({publishing, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not publishing.done():  # it may still report the cause itself
            await asyncio.wait({publishing}, timeout=REPORT_SECONDS)
        if publishing.done():
            return publishing.result()
        trainer.abandon(str(lost.result()))
        await asyncio.gather(publishing, return_exceptions=True)
        raise TrainingError(
            f"an engine died while the weights of version {version} were sent to it: {lost.result()}; run the same "
            "command again to resume from the last checkpoint"
        )
    finally:
        lost.cancel()
