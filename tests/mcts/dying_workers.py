"""Provide workers that die, and read the engine time that a run has stored."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcts.worker import LocalWorker, Report, WorkerDiedError
from mmprm.trees.store import Store
from mmprm.trees.tallies import Session, sessions


class DyingWorker(LocalWorker):
    """Reports twice, then dies and loses all unreported results."""

    reports = 0

    async def collect(self, seconds: float) -> Report:
        self.reports += 1
        if self.reports > 2:
            raise WorkerDiedError("killed")
        return await super().collect(seconds)


class DeadWorker(LocalWorker):
    """Dies before its first report."""

    seconds = 0.0

    async def collect(self, seconds: float) -> Report:
        await asyncio.sleep(self.seconds)
        raise WorkerDiedError("killed")


def engine_times(run: Path) -> list[Session]:
    store = Store.read(run)
    try:
        return sessions(store)
    finally:
        store.close()
