"""Run an annotation campaign: assign problems to workers, write the store, resume, and report progress."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mcts.capacity import FIRST, adapt
from mcts.config import CampaignConfig
from mcts.dtype import with_settled_dtype
from mcts.progress import CampaignSummary, Progress, show_progress, track_progress
from mcts.solutions import load_solutions
from mcts.worker import Report, Worker, WorkerDiedError
from mmprm import actors
from mmprm.environments.first_prompt import first_prompt
from mmprm.errors import SamplingError
from mmprm.grading.calibration import check_judge
from mmprm.grading.golds import check_golds
from mmprm.preflight import check_policy
from mmprm.problems import load_problems
from mmprm.sampling.seeds import environment_seed
from mmprm.trackers import check_tracker
from mmprm.trees.database import STORE_NAME
from mmprm.trees.repair import repair
from mmprm.trees.store import Finished, Store
from mmprm.types import Problem

SUMMARY_NAME = "summary.json"

GROWTH_SECONDS = 5.0
"""Seconds between checks of whether the cluster has capacity for more engines."""

MakeWorker = Callable[[int], Awaitable[Worker]]
"""Async factory that creates worker number n, ready to accept problems."""


def run_campaign(
    config: CampaignConfig, model_folder: str | None = None, make_worker: MakeWorker | None = None
) -> CampaignSummary:
    """Annotate all open problems in the run folder and in `config.problems`; write and return the summary.

    Args:
        config: The campaign's configuration.
        model_folder: Local folder of `config.engine.model` if that is a model name. The store records the name.
        make_worker: Creates the workers, instead of Ray. Their number is `config.workers`, or 1 by default.

    Raises:
        StoreError: The store has another configuration or another writer, or the disk is full.
        DataError: The problems cannot be read.
        SamplingError: The engines do not start, or die repeatedly.
        ConfigError, GradingError: The configuration or the calibration of the judge is invalid.

    Batches committed before an error are kept.
    """
    config = with_settled_dtype(config, model_folder, own_engines=make_worker is None)
    check_tracker(config.tracker, "tracker")
    check_judge(config.grader.judge)
    folder = Path(config.output)
    problems = _problems(config)
    if config.environment is None:
        check_golds(problems, config.grader, config.problems.path)
    is_new = not (folder / STORE_NAME).is_file()
    if is_new and make_worker is None:  # check first: a new store would record a configuration that cannot work
        _check(config, problems, model_folder)
    store = Store.create_or_open(folder / STORE_NAME, config.resume_key())
    try:
        repair(store)
        store.add_problems(problems, with_extra=config.environment is not None)
        progress = Progress(store.summary())
        if store.ids("open"):
            if not is_new and make_worker is None:
                _check(config, problems, model_folder)
            if model_folder is not None:
                config = config.model_copy(update={"engine": config.engine.model_copy(update={"model": model_folder})})
            with track_progress(progress, config):
                _annotate(config, store, progress, make_worker)
        summary = progress.summary(store.summary(), store.failures())
    finally:
        store.close()
    summary.write(folder / SUMMARY_NAME)
    return summary


def _problems(config: CampaignConfig) -> list[Problem]:
    """Return the problems to search or, if solutions are configured, one problem per solution to label."""
    if config.solutions is None:
        return load_problems(config.problems, episodes=config.environment is not None)
    return load_solutions(config.solutions, config.problems, config.step_format)


def _check(config: CampaignConfig, problems: Sequence[Problem], model_folder: str | None) -> None:
    engine = config.engine
    if model_folder is not None:
        engine = engine.model_copy(update={"model": model_folder})
    sampling = config.sampling
    if config.environment is not None:
        seed = environment_seed(config.seed, problems[0].id)
        problems = [first_prompt(config.environment, engine.images_per_prompt, problems[0], seed)]
        sampling = sampling.model_copy(update={"max_tokens": config.environment.max_turn_tokens})
    check_policy(engine, sampling, config.prompt, problems, config.search.rollouts, "search.rollouts")


def _annotate(config: CampaignConfig, store: Store, progress: Progress, make_worker: MakeWorker | None) -> None:
    if make_worker is not None:
        asyncio.run(_Driver(config, store, progress, make_worker, config.workers or 1).run())
        return
    if config.engine.servers is not None:
        asyncio.run(_annotate_on_servers(config, store, progress, len(config.engine.servers.urls)))
        return
    from mcts.ray_worker import RayWorkers

    with RayWorkers(config) as workers:
        actors.run(_Driver(config, store, progress, workers.make, workers.count, workers).run())


async def _annotate_on_servers(config: CampaignConfig, store: Store, progress: Progress, servers: int) -> None:
    from mcts.server_worker import server_workers

    async with server_workers(config) as make_worker:
        await _Driver(config, store, progress, make_worker, config.workers or servers).run()


class _Cluster(Protocol):
    """Describes the machines that engines run on. See mcts.ray_worker.RayWorkers."""

    def capacity(self) -> int: ...

    def loading(self) -> int: ...

    def missing(self) -> str: ...


@dataclass(slots=True)
class _Slot:
    """Tracks one of the driver's worker slots. A worker that dies is replaced by a new one in the same slot."""

    number: int
    in_flight: set[str] = field(default_factory=set)
    deaths: int = 0
    """Number of worker deaths since the last report."""
    has_reported: bool = False
    opening: bool = False
    """Whether the engine is currently starting."""


class _Driver:
    """Assigns problems to workers and writes their reports to the store."""

    def __init__(
        self,
        config: CampaignConfig,
        store: Store,
        progress: Progress,
        make_worker: MakeWorker,
        workers: int,
        cluster: _Cluster | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._progress = progress
        self._make_worker = make_worker
        self._queue = deque(store.ids("open"))
        self._problems = len(self._queue)
        self._workers = min(workers, self._problems)
        self._cluster = cluster
        self._last_engine = time.monotonic()
        """Time at which an engine was last running or being started."""
        self._running = 0
        """Number of running engines."""
        self._deaths: Counter[str] = Counter()
        """Number of engines that died while each problem was in flight, since the problem's last batch. Not counted for
        servers, because a problem does not make a server unreachable."""

    async def run(self) -> None:
        shown = asyncio.create_task(show_progress(self._progress))
        serving: dict[asyncio.Task[None], _Slot] = {}
        self._open_slots(serving, self._workers)
        try:
            waiting = set(serving)
            while waiting:
                # The timeout lets the loop notice machines that join the cluster.
                done, waiting = await asyncio.wait(waiting, timeout=GROWTH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                self._check_engines()
                waiting |= self._grow(serving)
                if not self._queue and not self._progress.in_flight:  # engines still starting are no longer needed
                    waiting = {task for task in waiting if not serving[task].opening}
        finally:
            for task in (shown, *serving):
                task.cancel()
            await asyncio.gather(shown, *serving, return_exceptions=True)

    def _check_engines(self) -> None:
        """Raise SamplingError if no engine has been running or starting for `start_timeout_seconds`."""
        limit, now = self._config.start_timeout_seconds, time.monotonic()
        if self._cluster is None or self._running or self._cluster.loading():
            self._last_engine = now
        elif now - self._last_engine >= limit:
            raise SamplingError(
                f"timed out after {limit:g} s waiting for {self._cluster.missing()}; finished batches are kept: add "
                "machines to the cluster or end what occupies them, and run the same command again to resume, or raise "
                "start_timeout_seconds"
            )

    def _open_slots(self, serving: dict[asyncio.Task[None], _Slot], count: int) -> set[asyncio.Task[None]]:
        slots = map(_Slot, range(len(serving), len(serving) + count))
        added = {asyncio.create_task(self._serve(slot)): slot for slot in slots}
        serving |= added
        return set(added)

    def _grow(self, serving: dict[asyncio.Task[None], _Slot]) -> set[asyncio.Task[None]]:
        """Add worker slots for machines that joined the cluster. Slots of lost machines wait for a replacement."""
        capacity = 0 if self._cluster is None else self._cluster.capacity()
        more = min(capacity - len(serving), len(self._queue))
        if more <= 0:
            return set()
        self._workers += more
        print(f"the cluster has capacity for more engines: starting {more}", file=sys.stderr, flush=True)
        return self._open_slots(serving, more)

    async def _serve(self, slot: _Slot) -> None:
        """Keep one worker busy until the campaign has no open problems, replacing the worker when it dies."""
        while self._queue or self._progress.in_flight:
            try:
                worker = await self._open(slot)
                if worker is None:
                    return
                with self._counted():
                    await self._feed(worker, slot)
            except WorkerDiedError as error:
                slot.deaths += 1
                self._take_back(slot, error)
                if slot.deaths > self._config.max_restarts:
                    self._give_up(slot, error)
                    return
                self._progress.workers_replaced += 1

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the engine as running until it dies. The store derives the engine time from this count."""
        self._running += 1
        if self._progress.workers:
            self._store.set_engines(self._running)
        else:
            self._store.begin_session(self._running)
        self._progress.workers = max(self._progress.workers, self._running)
        try:
            yield
        except WorkerDiedError:
            self._running -= 1
            self._store.set_engines(self._running)
            raise

    async def _open(self, slot: _Slot) -> Worker | None:
        slot.opening = True
        try:
            return await actors.wait(self._make_worker(slot.number), f"engine {slot.number} to start")
        except SamplingError as error:
            if slot.has_reported:  # it started before, so it may start again once its memory is released
                raise WorkerDiedError(str(error)) from error
            self._continue_without(f"engine {slot.number} does not start: {error}", error)
            return None
        finally:
            slot.opening = False

    async def _feed(self, worker: Worker, slot: _Slot) -> None:
        capacity = self._config.trees_in_flight or FIRST
        try:
            while self._queue or self._progress.in_flight:
                while self._queue and self._may_start(self._queue[0], slot.in_flight, capacity):
                    problem_id = self._queue.popleft()
                    slot.in_flight.add(problem_id)
                    stored = self._store.batches(problem_id)
                    self._progress.started(problem_id, stored)
                    await worker.start(self._store.problem(problem_id), stored)
                if not slot.in_flight:  # another worker may still die and return its problems to the queue
                    await asyncio.sleep(self._config.commit_seconds)
                    continue
                what = f"worker {slot.number} to report on {len(slot.in_flight)} problems"
                report = await actors.wait(self._next_report(worker), what)
                self._commit(report, slot)
                if report.load is not None and self._config.trees_in_flight is None:
                    capacity = adapt(capacity, len(slot.in_flight), report.load)
                slot.in_flight.difference_update(end.problem_id for end in report.finished)
        finally:
            with suppress(WorkerDiedError):
                await worker.close()

    async def _next_report(self, worker: Worker) -> Report:
        while True:
            report = await worker.collect(self._config.commit_seconds)
            if report.batches or report.finished:
                return report

    def _commit(self, report: Report, slot: _Slot) -> None:
        self._store.append(report.batches, report.finished)
        self._progress.reported(report.batches, report.finished)
        slot.deaths, slot.has_reported = 0, True
        for batch in report.batches:  # a new batch shows that the problem does not kill its engine
            self._deaths.pop(batch.problem_id, None)

    def _may_start(self, problem_id: str, in_flight: set[str], capacity: int) -> bool:
        """Return True if a problem may start on this worker now.

        A problem that was in flight when two or more engines died is searched alone; a single death may be a
        coincidence.
        """
        suspects = {suspect for suspect, deaths in self._deaths.items() if deaths > 1}
        if problem_id in suspects or suspects & in_flight:
            return not in_flight
        # Give every engine an equal share, so that the first one to start does not take all the problems.
        return len(in_flight) < min(capacity, -(-self._problems // self._workers))

    def _take_back(self, slot: _Slot, error: WorkerDiedError) -> None:
        """Return a dead worker's problems to the end of the queue.

        A problem that was searched alone is marked failed if its engines died more than `max_restarts` times and an
        engine in this slot has worked before.
        """
        left, slot.in_flight = slot.in_flight, set()
        if self._config.engine.servers is None:
            self._deaths.update(left)
        deaths = max(self._deaths[problem_id] for problem_id in left) if left else 0
        if len(left) == 1 and slot.has_reported and deaths > self._config.max_restarts:
            reason = f"its engine died {deaths} times: {error}"
            self._commit(Report((), (Finished(left.pop(), "failed", reason),)), slot)
        self._progress.abandoned(list(left))
        self._queue.extend(left)

    def _give_up(self, slot: _Slot, error: WorkerDiedError) -> None:
        reason = f"worker {slot.number} died {slot.deaths} times without finishing a batch: {error}"
        self._continue_without(reason, error)

    def _continue_without(self, what: str, error: Exception) -> None:
        self._workers -= 1
        if not self._workers:
            raise SamplingError(
                f"{what}; finished batches are kept: fix the cause and run the same command again to resume"
            ) from error
        print(f"{what}; continuing with the remaining workers", file=sys.stderr, flush=True)
