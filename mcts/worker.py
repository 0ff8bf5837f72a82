"""Run many tree searches concurrently on one sampler, and report their results to the driver."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from mcts.capacity import Load
from mcts.given import GivenRoller, count_step_labels, label_solution
from mcts.roll import Roller
from mcts.search import SearchConfig, SearchResult, search
from mmprm.errors import EngineStoppedError, MmprmError
from mmprm.steps import StepFormat
from mmprm.trees.evidence import count_labeled_prefixes
from mmprm.trees.serialization import StoredBatch, pack_batch
from mmprm.trees.store import Finished
from mmprm.types import Batch, Grader, Problem, Sampler

GROUP_BATCHES = 256
"""Number of finished batches that triggers a report immediately."""
TOGETHER_SECONDS = 0.1
"""Maximum time in seconds to hold back a report, so that the results of other running searches can be sent with it."""


@dataclass(frozen=True, slots=True)
class Report:
    """Contains the batches and problems that a worker finished since its last report.

    A problem's last batches are reported before or together with its end. `load` is the engine's load, if known.
    """

    batches: tuple[StoredBatch, ...]
    finished: tuple[Finished, ...]
    load: Load | None = None


class WorkerDiedError(Exception):
    """Signals that a worker died and lost all unreported work. Its problems are resumed from the store."""


class Worker(Protocol):
    """Defines the worker interface that the driver uses. All methods may raise WorkerDiedError."""

    async def start(self, problem: Problem, stored: Sequence[Batch]) -> None:
        """Start searching a problem in the background, replaying the `stored` batches first."""
        ...

    async def collect(self, seconds: float) -> Report:
        """Wait up to `seconds` for a full group of batches or the end of a problem, and return a report."""
        ...

    async def close(self) -> None:
        """Cancel all searches and release the engine."""
        ...


class BufferedWorker(ABC):
    """Runs searches in this process, buffering finished batches so that no search waits for the driver.

    Subclasses implement `_result`.
    """

    def __init__(self, config: SearchConfig, load: Callable[[], Load | None] = lambda: None) -> None:
        self._load = load
        self._config = config
        self._searches: set[asyncio.Task[None]] = set()
        self._batches: list[StoredBatch] = []
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
        if self._stopped and not self._batches and not self._finished:  # report finished work before the death
            raise WorkerDiedError(str(self._stopped))
        report = Report(tuple(self._batches), tuple(self._finished), self._load())
        self._batches, self._finished = [], []
        return report

    async def close(self) -> None:
        for task in self._searches:
            task.cancel()
        await asyncio.gather(*self._searches, return_exceptions=True)

    async def _search(self, problem: Problem, stored: Sequence[Batch]) -> None:
        try:
            result, labels = await self._result(problem, stored)
            self._finished.append(Finished(problem.id, "done", result.ended, labels))
        except EngineStoppedError as error:  # not caused by the problem, which another worker resumes
            self._stopped = error
        except MmprmError as error:
            self._finished.append(Finished(problem.id, "failed", str(error)))
        except Exception as error:  # one problem must not end the campaign; the store keeps the reason
            self._finished.append(Finished(problem.id, "failed", f"{type(error).__name__}: {error}"))
        self._worth_reporting.set()

    @abstractmethod
    async def _result(self, problem: Problem, stored: Sequence[Batch]) -> tuple[SearchResult, int]:
        """Search the problem, calling `_emit` with each new batch; return the result and the number of labels."""

    def _emit(self, batch: Batch) -> None:
        self._batches.append(pack_batch(batch))
        if len(self._batches) >= GROUP_BATCHES:
            self._worth_reporting.set()


class LocalWorker(BufferedWorker):
    """Samples, splits and grades solutions of problems, or labels the solutions that come with them.

    `search` is the algorithm; set another one to compare it on the same engines, grader and store.
    """

    search = staticmethod(search)

    def __init__(
        self,
        sampler: Sampler,
        grader: Grader,
        step_format: StepFormat,
        run_seed: int,
        config: SearchConfig,
        load: Callable[[], Load | None] = lambda: None,
    ) -> None:
        super().__init__(config, load)
        self._sampler = sampler
        self._grader = grader
        self._step_format = step_format
        self._run_seed = run_seed

    async def _result(self, problem: Problem, stored: Sequence[Batch]) -> tuple[SearchResult, int]:
        return await (self._label_solution if problem.given else self._search_tree)(problem, stored)

    async def _search_tree(self, problem: Problem, stored: Sequence[Batch]) -> tuple[SearchResult, int]:
        """Search the problem; return the result and the number of labels."""
        roller = Roller(problem, self._sampler, self._grader, self._step_format, self._run_seed, stored, self._emit)
        result = await self.search(problem, roller, self._config)
        return result, count_labeled_prefixes(result.tree, self._config)

    async def _label_solution(self, problem: Problem, stored: Sequence[Batch]) -> tuple[SearchResult, int]:
        """Label the problem's given solution; return the result and the number of labels."""
        roller = GivenRoller(
            problem, self._sampler, self._grader, self._step_format, self._run_seed, stored, self._emit
        )
        result = await label_solution(problem, roller, self._config)
        return result, count_step_labels(problem, result.tree, self._config)
