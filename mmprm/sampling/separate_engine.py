"""Run a vLLM engine in processes that vLLM starts, with the interface of mmprm.sampling.engines.InProcessEngine."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from mmprm.errors import EngineStoppedError
from mmprm.sampling.arguments import NO_ARGUMENTS, engine_arguments
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.engines import EngineStats, StatsKeeper, forget_finished_parents, tokenization
from mmprm.worker_logs import cause_since, log_position

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


class SeparateEngine:
    """Runs vLLM's AsyncLLM on a dedicated event loop, so that callers may use any loop."""

    def __init__(self, config: EngineConfig, arguments: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        self._log_position = log_position()
        self._keeper = StatsKeeper()
        self._numbers = itertools.count()
        self._in_flight: set[str] = set()
        self._turn = asyncio.Condition()
        self._calls = asyncio.Lock()
        self._closing = threading.Lock()
        self._is_closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        start = asyncio.run_coroutine_threadsafe(self._start(engine_arguments(config, arguments)), self._loop)
        try:
            self._engine = start.result()
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    def submit(self, prompt: dict[str, Any], params: SamplingParams) -> Future[RequestOutput]:
        """Submit a prompt and return a future for vLLM's output."""
        return self._schedule(self._generate(prompt, params))

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Schedule a call to a method of the vLLM engine, and return a future for its result.

        The method runs once nothing is in flight; later submissions wait for it.
        """
        return self._schedule(self._call(method, arguments))

    def interrupt(self) -> Future[None]:
        """Stop the requests in flight, and return a future that completes when they have stopped.

        Their own futures then complete with the tokens so far and the finish_reason "abort".
        """
        return self._schedule(self._interrupt())

    def stats(self) -> EngineStats:
        """Return the engine's current statistics."""
        return self._keeper.stats

    def check(self) -> None:
        """Raise EngineStoppedError if the engine has stopped."""
        if self._is_closed:
            raise _closed_error()
        if self._engine.errored:
            raise self._death(self._engine.dead_error)

    def close(self) -> None:
        """Stop vLLM's processes; requests in flight and later ones fail with EngineStoppedError."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result()
        self._engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self, arguments: Any) -> Any:
        """Start AsyncLLM on the engine's event loop, because AsyncLLM reads its workers' outputs on the running
        loop."""
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(arguments, stat_loggers=[lambda *_: self._keeper])

    def _schedule(self, job: Coroutine[Any, Any, Any]) -> Future[Any]:
        with self._closing:  # so that `close` ends every job that was scheduled
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(self._run(job), self._loop)
        job.close()
        refused: Future[Any] = Future()
        refused.set_exception(_closed_error())
        return refused

    async def _run(self, job: Coroutine[Any, Any, Any]) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            return await job
        except EngineDeadError as error:
            raise self._death(error) from error
        except asyncio.CancelledError:
            if self._is_closed:
                raise _closed_error() from None
            raise
        finally:
            self._tasks.discard(task)

    async def _end_tasks(self) -> None:
        """Cancel all pending tasks, because vLLM's shutdown would leave them waiting for outputs forever."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        name = str(next(self._numbers))
        async with self._calls:
            self._in_flight.add(name)
        try:
            (rendered,) = await self._engine.renderer.render_cmpl_async([prompt], tokenization(self._engine))
            return [output async for output in self._engine.generate(rendered, params, name)][-1]
        finally:
            self._in_flight.discard(name)
            async with self._turn:
                self._turn.notify_all()

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        async with self._calls:  # blocks later submissions
            async with self._turn:
                await self._turn.wait_for(lambda: not self._in_flight)
            return await getattr(self._engine, method)(*arguments)

    async def _interrupt(self) -> None:
        await self._engine.abort(list(self._in_flight))
        forget_finished_parents(self._engine.output_processor)

    def _death(self, error: Exception) -> EngineStoppedError:
        """Return the error for an engine whose processes have died, with the cause from their log."""
        cause = cause_since(self._log_position) or f"{error}; see its log above"
        return EngineStoppedError(f"the engine has stopped: {cause}; run the command again")


def _closed_error() -> EngineStoppedError:
    return EngineStoppedError("the engine has stopped: it was closed; open it again")
