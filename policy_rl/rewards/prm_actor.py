"""Run the process reward model in a Ray actor, so that it scores responses while others are being generated.

    prm = await RemotePrm.start(config)
    answers = await prm.judge(solutions)     # await hundreds at once: they are batched as they arrive
    await prm.replace(folder)                # when nothing is being judged
    prm.close()

Ray restarts an actor that dies; the new process loads the PRM and receives the pending requests again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import ray

from mmprm import actors
from mmprm.errors import EngineStoppedError, MmprmError, TrainingError
from mmprm.sampling.pool import REQUESTS_IN_FLIGHT
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.http.queue import Pace, ScoreQueue, ScoreResult
from mmprm.scoring.open import open_scorer
from mmprm.types import Solution
from policy_rl.rewards.command_actor import CommandActor, last_line
from policy_rl.rewards.process import ProcessConfig

T = TypeVar("T")
BATCH_SOLUTIONS = 256
"""Maximum number of solutions passed to the scorer at once. The scorer batches them by token count."""


class RemotePrm:
    """Scores solutions in a Ray actor. Create it with `start`, and use it in the same event loop.

    `processes` holds the ids of the processes that have answered: the first one, and each one that replaced a dead one.
    """

    processes: set[int]

    @classmethod
    async def start(cls, config: ProcessConfig, options: dict[str, Any] | None = None) -> RemotePrm:
        """Start the actor and wait until it has loaded the PRM. Starts Ray if it is not running.

        `options` come from policy_rl.placement. Raises the scorer's error if it cannot be loaded, and TrainingError if
        loading times out.
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
        self._resources = options or _resources(config)
        self._booked = {name: amount for name, amount in self._resources.items() if name in ("num_cpus", "num_gpus")}
        self._create(config.scorer)

    def _create(self, scorer: ScorerConfig) -> None:
        self._name = f"the PRM {scorer.described}"
        # With retries, Ray sends pending calls to the restarted process, which then loads the PRM again.
        limits = {
            "max_restarts": self._config.max_restarts,
            "max_task_retries": -1,
            "max_concurrency": REQUESTS_IN_FLIGHT,
        }
        self._actor = ray.remote(**limits, **self._resources)(PrmActor).remote(scorer, self._config.cores)
        self.processes = set()

    async def judge(self, solutions: Sequence[Solution]) -> list[ScoreResult]:
        """Score solutions; return the step scores of each one, or a DataError if it cannot be scored.

        Other errors of the scorer are raised.
        """
        process, answers = await self._wait(
            self._actor.judge.remote(list(solutions)),
            lambda: f"{len(solutions)} scores of {self._name} for problem {solutions[0].problem.id}",
            self._config.score_timeout_seconds,
            "raise process.score_timeout_seconds if it only needs longer",
            silent=True,
        )
        if process not in self.processes:
            self.processes.add(process)
            print(
                f"{self._name}: its process died; a new one has loaded it and continues",
                file=sys.stderr,
                flush=True,
            )
        return answers

    async def replace(self, folder: Path) -> None:
        """Load the PRM in `folder`, which mmprm train has written, instead of the current one.

        No solutions may be waiting for their scores.
        """
        self.close()
        # The configured PRM may be of another family; the new one names its own in prm.json.
        self._create(self._config.scorer.model_copy(update={"prm": str(folder), "format": "auto"}))
        await self._start()

    async def run_instead(self, command: Sequence[str], log: Path, timeout_seconds: float) -> None:
        """Unload the PRM and run a command on its device, with its output appended to `log`.

        Raises TrainingError if the command fails. Afterwards, a PRM must be loaded with `replace`.
        """
        self.close()
        runner = ray.remote(max_restarts=self._config.max_restarts, max_task_retries=-1, **self._resources)(
            CommandActor
        ).remote(self._config.cores)
        self._actor = runner  # so that `close` also ends the command
        code = await self._wait(
            runner.run.remote(list(command), str(log)),
            lambda: f"a new PRM to be trained; see {log}",
            timeout_seconds,
            "raise process.refresh.timeout_seconds if it only needs longer",
        )
        self.close()
        if code:
            raise TrainingError(
                f"training a new PRM failed with exit code {code}: {last_line(log)}; see {log}, and run the same "
                "command again to resume"
            )

    def close(self) -> None:
        """Kill the actor."""
        actors.kill(self._actor)

    async def _start(self) -> None:
        process = await self._wait(
            self._actor.start.remote(),
            lambda: f"{self._name} to load; it books {self._booked}, Ray has {actors.free_resources()} free",
            self._config.start_timeout_seconds,
            "lower the resources of engines and trainer, or raise process.start_timeout_seconds",
        )
        self.processes.add(process)

    async def _wait(
        self,
        answer: Awaitable[T],
        what: Callable[[], str],
        timeout_seconds: float,
        way_out: str,
        silent: bool = False,
    ) -> T:
        """Await the actor's answer; raise the scorer's error, or TrainingError on timeout or if the actor is dead."""
        try:
            return await actors.wait(answer, what, timeout_seconds, way_out, TrainingError, silent)
        except EngineStoppedError as error:
            raise TrainingError(
                f"{self._name} has stopped after at most {self._config.max_restarts} restarts "
                f"(process.max_restarts): {error}; run the same command again to resume from the last checkpoint"
            ) from None


class PrmActor:
    """Runs the scorer in a thread that takes requests from a queue.

    The scorer is loaded in a method call, not in the constructor, because Ray propagates errors of a call unchanged.
    After Ray has restarted the process, the first call loads the scorer.
    """

    def __init__(self, config: ScorerConfig, cores: int) -> None:
        self._config, self._cores = config, cores
        self._loading = asyncio.Lock()
        self._queue: ScoreQueue | None = None

    async def start(self) -> int:
        """Load the scorer if it is not loaded yet; return the process id."""
        # Calls arrive concurrently; only the first one loads the scorer.
        async with self._loading:
            if self._queue is None:
                thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prm")
                scorer = await asyncio.get_running_loop().run_in_executor(thread, self._load)
                self._queue = ScoreQueue(scorer, Pace(most=BATCH_SOLUTIONS, limit=BATCH_SOLUTIONS), thread)
        return os.getpid()

    async def judge(self, solutions: list[Solution]) -> tuple[int, list[ScoreResult]]:
        """Score solutions; return the process id and one result per solution."""
        process = await self.start()
        assert self._queue is not None, "start makes it"
        answers = await self._queue.judge(solutions, [1.0] * len(solutions))
        return process, [_portable(answer) for answer in answers]

    def _load(self) -> Any:
        if self._config.is_remote:
            return open_scorer(self._config)
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(self._cores)
        return open_scorer(self._config)


def _portable(answer: ScoreResult) -> ScoreResult:
    """Convert other packages' exceptions, which may not be picklable, to TrainingError; return other results
    unchanged."""
    if isinstance(answer, Exception) and not isinstance(answer, MmprmError):
        return TrainingError(
            f"the PRM failed on a solution ({type(answer).__name__}: {answer}); reproduce it with mmprm score"
        )
    return answer


def _resources(config: ProcessConfig) -> dict[str, float]:
    if not config.scorer.is_remote and ray.cluster_resources().get("GPU", 0) > 0:
        return {"num_cpus": 0, "num_gpus": config.scorer.tensor_parallel_size}
    return {"num_cpus": 0}
