"""The searches that run on one sampler, in one event loop, and what the driver sees of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from mcts.roll import Roller
from mcts.room import Load
from mcts.search import SearchConfig, search
from mmprm.errors import EngineStoppedError, MmprmError
from mmprm.steps import Markup
from mmprm.trees.evidence import count_labels
from mmprm.trees.records import PackedBatch, pack_batch
from mmprm.trees.store import Finished
from mmprm.types import Batch, Grader, Problem, Sampler

GROUP_BATCHES = 256
"""A group this large is handed over at once."""
TOGETHER_SECONDS = 0.1
"""Ends that come so close together are one report, as long as the engine has other trees to work on."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker finished since its last report. A problem's last batches come no later than its end. `load` is its
    engine's, where it tells."""

    batches: tuple[PackedBatch, ...]
    finished: tuple[Finished, ...]
    load: Load | None = None


class WorkerDiedError(Exception):
    """The worker is gone with whatever it had not reported; its problems go on elsewhere from the store."""


class Worker(Protocol):
    """What the driver needs of a worker, wherever it runs. All methods may raise WorkerDiedError."""

    async def start(self, problem: Problem, stored: Sequence[Batch]) -> None:
        """Begin a search and return at once; `stored` batches are replayed first."""
        ...

    async def collect(self, seconds: float) -> Report:
        """Report as soon as a group is full or a problem has ended, after `seconds` at the latest."""
        ...

    async def close(self) -> None: ...


class LocalWorker:
    """A worker in this process. Finished batches wait in an outbox, so that no search waits for the driver."""

    def __init__(
        self,
        sampler: Sampler,
        grader: Grader,
        markup: Markup,
        run_seed: int,
        config: SearchConfig,
        load: Callable[[], Load | None] = lambda: None,
    ) -> None:
        self._load = load
        self._sampler = sampler
        self._grader = grader
        self._markup = markup
        self._run_seed = run_seed
        self._config = config
        self._searches: set[asyncio.Task[None]] = set()
        self._batches: list[PackedBatch] = []
        self._finished: list[Finished] = []
        self._worth_reporting = asyncio.Event()
        self._stopped: EngineStoppedError | None = None

    async def start(self, problem: Problem, stored: Sequence[Batch]) -> None:
        task = asyncio.create_task(self._search(problem, stored))
        self._searches.add(task)
        task.add_done_callback(self._searches.discard)

    async def collect(self, seconds: float) -> Report:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._worth_reporting.wait(), seconds)
            if not all(task.done() for task in self._searches):
                await asyncio.sleep(min(TOGETHER_SECONDS, seconds))
        self._worth_reporting.clear()
        if self._stopped and not self._batches and not self._finished:
            raise WorkerDiedError(str(self._stopped))
        report = Report(tuple(self._batches), tuple(self._finished), self._load())
        self._batches, self._finished = [], []
        return report

    async def close(self) -> None:
        for task in self._searches:
            task.cancel()
        await asyncio.gather(*self._searches, return_exceptions=True)

    async def _search(self, problem: Problem, stored: Sequence[Batch]) -> None:
        roller = Roller(problem, self._sampler, self._grader, self._markup, self._run_seed, stored, self._emit)
        try:
            result = await search(problem, roller, self._config)
            self._finished.append(Finished(problem.id, "done", result.ended, count_labels(result.tree, self._config)))
        except EngineStoppedError as error:  # no fault of the problem, which goes on elsewhere
            self._stopped = error
        except MmprmError as error:
            self._finished.append(Finished(problem.id, "failed", str(error)))
        except (
            Exception
        ) as error:  # one odd problem must not end a campaign of thousands; the reason stays in the store
            self._finished.append(Finished(problem.id, "failed", f"{type(error).__name__}: {error}"))
        self._worth_reporting.set()

    def _emit(self, batch: Batch) -> None:
        self._batches.append(pack_batch(batch))
        if len(self._batches) >= GROUP_BATCHES:
            self._worth_reporting.set()
