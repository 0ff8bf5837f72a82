"""Run environments in threads, so that many episodes can be played concurrently and none can block the others."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from mmprm.environments.interface import Environment
from mmprm.environments.load import EnvironmentConfig, make_environment
from mmprm.errors import EpisodeError, MmprmError

_R = TypeVar("_R")


class EnvironmentThread:
    """Runs one environment in a daemon thread, which does not keep the process alive if the environment hangs."""

    def __init__(self, config: EnvironmentConfig) -> None:
        self._config = config
        self._inbox: queue.SimpleQueue[tuple[Callable[[Environment], object], Future] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="environment", daemon=True).start()

    async def call(self, function: Callable[[Environment], _R], turns: int = 1) -> _R:
        """Call `function` with the environment in its thread, and return the result. The time limit is the configured
        time per turn, multiplied by `turns`.

        Raises EpisodeError if the environment raises an exception or takes longer. Errors that a user can resolve, such
        as a problem without a level, are raised as they are.
        """
        future: Future[_R] = Future()
        self._inbox.put((function, future))
        seconds = self._config.timeout_seconds * turns
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError as error:
            raise EpisodeError(f"environment took more than {seconds:g} s") from error

    def stop(self) -> None:
        """Close the environment after its current call, without waiting for it."""
        self._inbox.put(None)

    def _run(self) -> None:
        environment: Environment | None = None
        while (job := self._inbox.get()) is not None:
            function, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if environment is None:
                    environment = make_environment(self._config)
                future.set_result(function(environment))
            except MmprmError as error:
                future.set_exception(error)
            # An environment is foreign code. Outside of this thread, SystemExit would end the event loop, and asyncio
            # cannot pass on StopIteration.
            except BaseException as error:
                failure = EpisodeError(f"environment failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                future.set_exception(failure)
        if environment is not None:
            with suppress(Exception):
                environment.close()


class EnvironmentPool:
    """Lends environments to episodes, at most `config.max_environments` at a time, and reuses them."""

    def __init__(self, config: EnvironmentConfig) -> None:
        self._config = config
        self._idle: list[EnvironmentThread] = []
        self._free = asyncio.Semaphore(config.max_environments)
        self.waiting = 0
        """Number of episodes that wait for an environment."""

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[EnvironmentThread]:
        """Yield an environment that no other episode uses. After an exception, it is not used again."""
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        try:
            environment = self._idle.pop() if self._idle else EnvironmentThread(self._config)
            try:
                yield environment
            except BaseException:
                environment.stop()
                raise
            self._idle.append(environment)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close all environments that are not in use."""
        while self._idle:
            self._idle.pop().stop()
