"""Collect several steps at the same time: the queue between the rollouts and the trainer.

    queue = StepQueue(collector.collect)
    queue.start(step + 1)                 # in the background
    collected = await queue.wait(step)    # starts it if necessary
    queue.drop(step)

Steps are used in order, whichever is collected first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from policy_rl.rollouts.collected import Collected


class StepQueue:
    """Holds the steps that are being collected or are waiting for the trainer."""

    def __init__(self, collect: Callable[[int], Awaitable[Collected]]) -> None:
        self._collect = collect
        self._steps: dict[int, asyncio.Future[Collected]] = {}

    @property
    def is_empty(self) -> bool:
        """Return whether no step has been started that the trainer has not used."""
        return not self._steps

    def start(self, step: int) -> None:
        """Start to collect a step, unless it has been started."""
        if step not in self._steps:
            self._steps[step] = asyncio.ensure_future(self._collect(step))

    async def wait(self, step: int) -> Collected:
        """Return the groups of a step. They stay in the queue, and thus in checkpoints, until `drop`."""
        self.start(step)
        return await self._steps[step]

    def drop(self, step: int) -> None:
        """Remove a step, because the trainer is about to use it."""
        del self._steps[step]

    async def wait_for_all(self) -> None:
        """Wait until all steps have been collected."""
        await asyncio.gather(*self._steps.values())

    async def cancel(self) -> None:
        """Stop collecting."""
        for task in self._steps.values():
            task.cancel()
        await asyncio.gather(*self._steps.values(), return_exceptions=True)

    def state(self) -> dict[str, Any]:
        """Return the collected steps for a checkpoint. The collector's state covers the others."""
        return {str(step): task.result().to_json() for step, task in self._steps.items() if _has_result(task)}

    def put(self, step: int, collected: Collected) -> None:
        """Add a step that was collected before the run was resumed."""
        task = asyncio.get_running_loop().create_future()
        task.set_result(collected)
        self._steps[step] = task


def _has_result(task: asyncio.Future[Collected]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
