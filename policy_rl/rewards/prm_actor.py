"""Run the process reward model of a run in its own Ray actor, so that it scores while responses are being generated.

    prm = await Prm.start(config)
    answers = await prm.judge(solutions)     # await hundreds at once: they are batched as they arrive
    prm.close()

Ray restarts an actor that dies; it loads the PRM again and receives the requests that were in flight again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError

from mmprm import actors
from mmprm.errors import EngineStoppedError, MmprmError, TrainingError
from mmprm.sampling.pool import NOTICE_SECONDS, REQUESTS_IN_FLIGHT, cause_of
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.http.queue import Answer, Pace, ScoreQueue
from mmprm.scoring.open import open_scorer
from mmprm.types import Solution
from policy_rl.rewards.process import ProcessConfig

BATCH_SOLUTIONS = 256
"""Maximum number of solutions passed to the scorer at once; the scorer splits them into batches by tokens."""


class Prm:
    """Score solutions in a Ray actor. Create it with `start`, and use it in the same event loop.

    `processes` are the ids of the processes that have answered: one, plus one for each that replaced a dead one.
    """

    processes: set[int]

    @classmethod
    async def start(cls, config: ProcessConfig, options: dict[str, Any] | None = None) -> Prm:
        """Start the actor and wait until it has loaded the PRM. Starts Ray if it is not running.

        `options` come from policy_rl.placement. Raises the scorer's own error if it cannot be loaded, and TrainingError
        if loading takes too long.
        """
        prm = cls(config, options)
        try:
            await prm._start()
        except BaseException:
            prm.close()
            raise
        return prm

    def __init__(self, config: ProcessConfig, options: dict[str, Any] | None) -> None:
        actors.connect()
        self._config = config
        self._name = f"the PRM {config.scorer.prm or 'behind its server'}"
        resources = options or _resources(config)
        self._booked = {name: amount for name, amount in resources.items() if name in ("num_cpus", "num_gpus")}
        limits = {"max_restarts": config.max_restarts, "max_task_retries": -1, "max_concurrency": REQUESTS_IN_FLIGHT}
        self._actor = ray.remote(**limits, **resources)(PrmActor).remote(config.scorer, config.cores)
        self.processes = set()

    async def judge(self, solutions: Sequence[Solution]) -> list[Answer]:
        """Return the scores of each solution, or a DataError for one that cannot be scored.

        Other errors of the scorer are raised.
        """
        answer = self._actor.judge.remote(list(solutions))
        try:
            process, answers = await asyncio.wait_for(answer, self._config.score_timeout_seconds)
        except TimeoutError as error:
            raise TrainingError(
                f"problem {solutions[0].problem.id}: waited {self._config.score_timeout_seconds:g} s in vain for "
                f"{len(solutions)} scores of {self._name}; a larger process.score_timeout_seconds gives it more time"
            ) from error
        except RayError as error:
            raise self._ended(error) from None
        if process not in self.processes:
            self.processes.add(process)
            print(f"{self._name}: its process has died; another has loaded it and goes on", file=sys.stderr, flush=True)
        return answers

    def close(self) -> None:
        """End the actor."""
        actors.kill(self._actor)

    async def _start(self) -> None:
        start = asyncio.ensure_future(self._actor.start.remote())
        waited = 0.0
        while not start.done():
            limit = min(NOTICE_SECONDS, self._config.start_timeout_seconds - waited)
            waiting = f"{self._name} to load; it books {self._booked}, Ray has {_free()} free"
            if limit <= 0:
                start.cancel()
                raise TrainingError(
                    f"waited {waited:g} s in vain for {waiting}; book less for engines and trainer, or raise "
                    "process.start_timeout_seconds"
                )
            await asyncio.wait([start], timeout=limit)
            waited += limit
            if not start.done():
                print(f"waiting for {waiting} ({waited:.0f} s)", file=sys.stderr, flush=True)
        try:
            self.processes.add(start.result())
        except RayError as error:
            raise self._ended(error) from None

    def _ended(self, error: RayError) -> MmprmError:
        cause = cause_of(error)
        if isinstance(cause, EngineStoppedError):
            return TrainingError(
                f"{self._name} has stopped, after {self._config.max_restarts} restarts at most "
                f"(process.max_restarts): {cause}; go on from the last checkpoint"
            )
        return cause


class PrmActor:
    """Run the scorer in one thread that takes its requests from a queue.

    It is loaded in a call, not in the constructor, because Ray passes on the errors of a call unchanged; in a process
    that Ray has restarted, the first call loads it.
    """

    def __init__(self, config: ScorerConfig, cores: int) -> None:
        self._config, self._cores = config, cores
        self._loading = asyncio.Lock()
        self._queue: ScoreQueue | None = None

    async def start(self) -> int:
        """Load the scorer if it is not loaded; return the process id."""
        async with self._loading:
            if self._queue is None:
                thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prm")
                scorer = await asyncio.get_running_loop().run_in_executor(thread, self._load)
                self._queue = ScoreQueue(scorer, Pace(most=BATCH_SOLUTIONS, limit=BATCH_SOLUTIONS), thread)
        return os.getpid()

    async def judge(self, solutions: list[Solution]) -> tuple[int, list[Answer]]:
        """Return the process id and one answer per solution."""
        process = await self.start()
        assert self._queue is not None, "start makes it"
        answers = await self._queue.judge(solutions, [1.0] * len(solutions))
        return process, [_portable(answer) for answer in answers]

    def _load(self) -> Any:
        if self._config.backend == "server":
            return open_scorer(self._config)
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(self._cores)
        return open_scorer(self._config)


def _portable(answer: Answer) -> Answer:
    """Return the answer in a form that can be sent to another process, which errors of other packages may not be."""
    if isinstance(answer, Exception) and not isinstance(answer, MmprmError):
        return TrainingError(f"the PRM failed on a solution ({type(answer).__name__}: {answer}); try mmprm score")
    return answer


def _resources(config: ProcessConfig) -> dict[str, float]:
    if config.scorer.backend != "server" and ray.cluster_resources().get("GPU", 0) > 0:
        return {"num_cpus": 0, "num_gpus": 1}
    return {"num_cpus": 0}


def _free() -> dict[str, float]:
    return {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
