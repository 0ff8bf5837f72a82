"""The driver of an annotation campaign: hands out problems, is the only writer of the store, resumes, reports."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from mcts.config import CampaignConfig
from mcts.progress import CampaignSummary, Progress, announce_waiting, show
from mcts.room import FIRST, adapt
from mcts.worker import Worker, WorkerDiedError
from mmprm.errors import SamplingError
from mmprm.grading.calibration import check_judge
from mmprm.problems import load_problems
from mmprm.store import STORE_NAME, Store

SUMMARY_NAME = "summary.json"

MakeWorker = Callable[[int], Awaitable[Worker]]
"""(worker number) → a worker that is ready for problems."""


def run_campaign(
    config: CampaignConfig, model_folder: str | None = None, make_worker: MakeWorker | None = None
) -> CampaignSummary:
    """Annotate every open problem of the run folder and of `config.problems`, then write and return the summary.

    `model_folder` is where `config.engine.model` lies on this machine, if that is a name; the store remembers the name.
    `make_worker` puts other workers in the place of the Ray actors; their number is `config.workers`, or 1. Raises
    StoreError (another configuration, a second driver, a full disk), DataError (the problems cannot be read),
    SamplingError (engines do not start, or keep dying), ConfigError and GradingError (a judge that is not calibrated).
    What was committed before is kept in every case.
    """
    check_judge(config.grader.judge)
    folder = Path(config.run)
    problems = load_problems(config.problems)
    store = Store.create_or_open(folder / STORE_NAME, config.identity())
    try:
        store.add_problems(problems)
        progress = Progress(store.summary())
        if store.ids("open"):
            if model_folder is not None:
                config = config.model_copy(update={"engine": config.engine.model_copy(update={"model": model_folder})})
            _annotate(config, store, progress, make_worker)
        summary = progress.summary(store.summary(), store.failures())
    finally:
        store.close()
    summary.write(folder / SUMMARY_NAME)
    return summary


def _annotate(config: CampaignConfig, store: Store, progress: Progress, make_worker: MakeWorker | None) -> None:
    if make_worker is not None:
        asyncio.run(_Driver(config, store, progress, make_worker, config.workers or 1).run())
        return
    if config.engine.servers is not None:
        asyncio.run(_annotate_on_servers(config, store, progress, len(config.engine.servers.urls)))
        return
    from mcts.ray_worker import RayWorkers

    with RayWorkers(config) as workers:
        asyncio.run(_Driver(config, store, progress, workers.make, workers.count).run())


async def _annotate_on_servers(config: CampaignConfig, store: Store, progress: Progress, servers: int) -> None:
    from mcts.server_worker import server_workers

    async with server_workers(config) as make_worker:
        await _Driver(config, store, progress, make_worker, config.workers or servers).run()


class _Driver:
    def __init__(
        self, config: CampaignConfig, store: Store, progress: Progress, make_worker: MakeWorker, workers: int
    ) -> None:
        self._config = config
        self._store = store
        self._progress = progress
        self._make_worker = make_worker
        self._queue = deque(store.ids("open"))
        self._progress.workers = min(workers, len(self._queue))
        # The first engine that is up must not take what the others could search beside it.
        self._fair_share = -(-len(self._queue) // progress.workers)

    async def run(self) -> None:
        shown = asyncio.create_task(show(self._progress))
        serving = [asyncio.create_task(self._serve(number)) for number in range(self._progress.workers)]
        try:
            await asyncio.gather(*serving)
        finally:
            for task in (shown, *serving):
                task.cancel()
            await asyncio.gather(shown, *serving, return_exceptions=True)

    async def _serve(self, number: int) -> None:
        """Keep one worker busy until no problem is left, replacing it when it dies."""
        deaths = 0
        while self._queue:
            rollouts_before = self._progress.rollouts
            in_flight: set[str] = set()
            try:
                worker = await announce_waiting(self._make_worker(number), f"engine {number} to start")
                if self._progress.first_start is None:
                    self._store.begin_session(self._progress.workers)
                await self._feed(worker, in_flight)
            except WorkerDiedError as error:
                deaths = deaths + 1 if self._progress.rollouts == rollouts_before else 1
                if deaths > self._config.worker_restarts:
                    raise SamplingError(
                        f"worker {number} died {deaths} times without finishing a batch: {error}; what was finished is "
                        "kept, and the same command goes on from there"
                    ) from error
                self._progress.abandoned(list(in_flight))
                self._progress.workers_replaced += 1
                self._queue.extendleft(in_flight)

    async def _feed(self, worker: Worker, in_flight: set[str]) -> None:
        room = self._config.trees_in_flight or FIRST
        try:
            while self._queue or in_flight:
                while self._queue and len(in_flight) < min(room, self._fair_share):
                    problem_id = self._queue.popleft()
                    in_flight.add(problem_id)
                    stored = self._store.batches(problem_id)
                    self._progress.started(problem_id, stored)
                    await worker.start(self._store.problem(problem_id), stored)
                report = await announce_waiting(worker.collect(self._config.commit_seconds), "an engine to answer")
                self._store.append(report.batches, report.finished)
                self._progress.reported(report.batches, report.finished)
                if report.load is not None and self._config.trees_in_flight is None:
                    room = adapt(room, len(in_flight), report.load)
                in_flight.difference_update(end.problem_id for end in report.finished)
        finally:
            with suppress(WorkerDiedError):
                await worker.close()
