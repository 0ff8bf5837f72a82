"""Manage Ray: join a cluster or start Ray locally, wait for actors, and detect when Ray becomes unavailable.

connect(config.ray_address)                 # called by every command that uses actors
result = run(main())                        # asyncio.run that raises EngineStoppedError when Ray is gone
answer = await wait(actor.load.remote(), "engine 1 to start", timeout_seconds)

A wait reports every 30 s what it is waiting for and raises an error after its time limit. It re-raises errors from the
actor's own code. If the actor is dead, it raises EngineStoppedError with the last lines of the process's log.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmprm import orphans
from mmprm.errors import EngineStoppedError, MmprmError, SetupError
from mmprm.ray_address import AUTH_MODE, check_reachable, cluster_address
from mmprm.signals import kept_handlers
from mmprm.worker_logs import cause_of_death

T = TypeVar("T")

NOTICE_SECONDS = 30.0
"""Interval in seconds between progress messages while waiting."""
CHECK_SECONDS = 5.0
ANSWER_SECONDS = 20.0
"""Timeout in seconds for a status query to Ray, after which Ray is considered unavailable."""
_CLOSE_SECONDS = 5.0
"""Maximum time in seconds to wait for a cancelled command to clean up when Ray has become unavailable."""
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Name of Ray's environment variable that enables clusters on Windows and macOS; 0 makes Ray listen on 127.0.0.1 only,
on every platform."""
NICENESS = "RAY_worker_niceness"
"""Name of the environment variable for the niceness of Ray's workers. With Ray's default of 15, other busy processes
would leave them hardly any CPU time."""

_gone: str | None = None
_nodes: list[dict[str, Any]] = []


def connect(address: str | None = None) -> bool:
    """Join the Ray cluster at `address` or start Ray locally; return False if this process was already connected.

    Without `address`, uses RAY_ADDRESS or a local `ray start`. If this call starts Ray, Ray listens on the loopback
    interface only. Raises SetupError with the address and its source if Ray does not respond there or fails to start.
    """
    import ray

    if ray.is_initialized():
        return False
    found, source = cluster_address(address)
    asks_for_token = True
    if found is not None:
        asks_for_token = check_reachable(found, source)
    else:
        _keep_to_loopback()
        os.environ.setdefault(NICENESS, "0")
    try:
        with kept_handlers(), _token_mode(asks_for_token):
            ray.init(
                address=found or "local",
                num_cpus=None if found else _usable_cores(),
                include_dashboard=False if found is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,  # at lower levels, Ray logs its start at every command
            )
    except Exception as error:  # Ray raises a plain Exception if its own processes fail to start
        reason = f"{type(error).__name__}: {error}".strip()
        if found is not None:
            raise SetupError(
                f"{source}={found}: Ray cannot be joined there ({reason}); check that both run the same versions of "
                "Ray and Python, or leave the address out"
            ) from error
        raise SetupError(
            f"Ray did not start on this machine: {reason}; check the free space of /tmp and /dev/shm and the limits on "
            "memory and processes (ulimit -a), or join a cluster with ray_address"
        ) from error
    if found is None:
        orphans.stop_children()  # Ray's processes outlive a killed driver
        _hide_token()
    return True


def _usable_cores() -> int:
    """Return the number of cores that this process may use.

    Ray counts the machine's cores, or the quota of its container, even if taskset or Slurm allow fewer.
    """
    from ray._private.utils import get_num_cpus

    return max(1, min(len(os.sched_getaffinity(0)), int(get_num_cpus())))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` with asyncio.run and return its result; raise EngineStoppedError within 30 s after Ray stops."""
    return asyncio.run(guarded(main))


async def guarded(main: Coroutine[Any, Any, T]) -> T:
    """Await `main` and return its result; raise EngineStoppedError if Ray stops first."""
    task, watch = asyncio.ensure_future(main), asyncio.ensure_future(_until_gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            reason = watch.result()
            _abandon(reason)
            task.cancel()
            await asyncio.wait({task}, timeout=_CLOSE_SECONDS)
            raise EngineStoppedError(f"{reason}; finished work is kept: run the same command again to resume")
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            if _gone is None:
                await asyncio.gather(task, return_exceptions=True)


class Patience:
    """Enforces a time limit on a wait, and prints a progress message every 30 s.

    `what` completes the message "waiting for …"; it may be a function, which is called for each message. `way_out`
    tells the user how to change the limit; `error` is the exception class to raise.
    """

    def __init__(
        self,
        what: str | Callable[[], str],
        timeout_seconds: float | None = None,
        way_out: str = "",
        error: type[MmprmError] = EngineStoppedError,
    ) -> None:
        self._what, self._way_out, self._error = what, way_out, error
        self._started = time.monotonic()
        self._limit = timeout_seconds
        self._noticed = 0.0
        self.is_silent = False

    def seconds(self) -> float:
        """Print a progress message if one is due, and return the seconds until the next message or the time limit,
        whichever comes first.

        Raises the configured error if the limit has passed.
        """
        waited = time.monotonic() - self._started
        if self._limit is not None and waited >= self._limit:
            way_out = f"; {self._way_out}" if self._way_out else ""
            raise self._error(f"timed out after {self._limit:g} s waiting for {self._text()}{way_out}")
        if waited - self._noticed >= NOTICE_SECONDS:
            self._noticed = waited
            if not self.is_silent:
                print(f"waiting for {self._text()} ({waited:.0f} s)", file=sys.stderr, flush=True)
        next_notice = self._noticed + NOTICE_SECONDS
        return max(0.0, min(next_notice, next_notice if self._limit is None else self._limit) - waited)

    def shorten(self, seconds: float) -> None:
        """Limit the remaining wait to `seconds`, and print no further messages."""
        end = time.monotonic() - self._started + seconds
        self._limit = end if self._limit is None else min(end, self._limit)
        self.is_silent = True

    def _text(self) -> str:
        return self._what if isinstance(self._what, str) else self._what()


async def wait(
    answer: Awaitable[T],
    what: str | Callable[[], str],
    timeout_seconds: float | None = None,
    way_out: str = "",
    error: type[MmprmError] = EngineStoppedError,
    silent: bool = False,
) -> T:
    """Await an actor's answer or any other awaitable, and return its result.

    Raises the actor's error as converted by cause_of, or `error` after the time limit; see Patience. `silent`
    suppresses the progress messages.
    """
    from ray.exceptions import RayError

    patience = Patience(what, timeout_seconds, way_out, error)
    patience.is_silent = silent
    task = asyncio.ensure_future(answer)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=patience.seconds())
        return task.result()
    except RayError as failure:
        raise cause_of(failure, patience._text()) from None
    finally:
        task.cancel()


def wait_all(
    references: Sequence[Any],
    what: str | Callable[[], str],
    timeout_seconds: float | None = None,
    way_out: str = "",
    error: type[MmprmError] = EngineStoppedError,
) -> list[Any]:
    """Wait for all references without an event loop, and return their results in order; see `wait` for its errors."""
    import ray
    from ray.exceptions import RayError

    patience = Patience(what, timeout_seconds, way_out, error)
    waiting = list(references)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=patience.seconds())
            ray.get(done)
        return ray.get(list(references))
    except RayError as failure:
        raise cause_of(failure, patience._text()) from None


def cause_of(error: Exception, what: str = "") -> MmprmError:
    """Return the MmprmError raised in the actor, or wrap any other error's text in an EngineStoppedError.

    Ray wraps the original error and puts both tracebacks into the text. For a dead actor, Ray's text gives no reason;
    the last lines of the process's log are added if this machine has it. `what` describes what was waited for.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, MmprmError):
        return cause
    text = str(error)
    last = cause_of_death(text)
    waited_for = f"{what}: " if what else ""
    wrote = f"; it wrote last: {last}" if last else ""
    return EngineStoppedError(f"{waited_for}{text}{wrote}; resolve the cause, and run the same command again")


def is_gone() -> bool:
    """Return whether Ray was running but no longer responds, in which case Ray must not be called."""
    return _gone is not None


def alive_nodes() -> list[dict[str, Any]]:
    """Return the Ray nodes that were alive when `guarded` last checked, without querying Ray."""
    return [node for node in _nodes if node["Alive"]]


def free_resources() -> str:
    """Describe the cluster's free CPUs and GPUs as text."""
    import ray

    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"


def kill(actor: Any) -> None:
    """Kill an actor's process; do nothing if Ray is unavailable, because the call would hang."""
    if _gone is None:
        import ray

        ray.kill(actor)


def shutdown() -> None:
    """Disconnect from Ray; do nothing if Ray is unavailable."""
    if _gone is None:
        import ray

        ray.shutdown()


async def _until_gone() -> str:
    """Wait until Ray becomes unavailable, and return the reason."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        import ray

        if not ray.is_initialized():
            continue
        if reason := await _state():
            return reason


async def _state() -> str | None:
    """Return why Ray is unavailable, or None if it is running. The query runs in a thread because it may hang."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str | None] = loop.create_future()

    def ask() -> None:
        reason = _reason()
        loop.call_soon_threadsafe(lambda: answer.done() or answer.set_result(reason))

    threading.Thread(target=ask, name="ray-watch", daemon=True).start()
    try:
        return await asyncio.wait_for(answer, ANSWER_SECONDS)
    except TimeoutError:
        return f"Ray has not answered for {ANSWER_SECONDS:g} s"


def _reason() -> str | None:
    import ray
    from ray._private import worker

    node = worker._global_node
    try:
        if node is not None and (dead := node.dead_processes()):  # only processes that this process started
            return f"Ray is gone: its {dead[0][0]} has ended"
        own = ray.get_runtime_context().get_node_id()
        _nodes[:] = ray.nodes()
        here = next((each for each in _nodes if each["NodeID"] == own), None)
        if here is not None and not here["Alive"]:
            return (
                f"Ray is gone: this machine's raylet has ended ({here.get('DeathReasonMessage') or 'no reason given'})"
            )
    except Exception as error:  # Ray raises many exception types in a client after the server is gone
        if ray.is_initialized():
            return f"Ray is gone: {type(error).__name__}: {error}"
    return None


def _abandon(reason: str) -> None:
    """Prevent further calls to Ray, including those at process exit, because they would hang."""
    import ray

    global _gone
    _gone = reason
    atexit.unregister(ray.shutdown)


def _hide_token() -> None:
    """Make the cluster's authentication token readable only by its owner; Ray creates it world-readable."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray/auth_token").chmod(0o600)


@contextlib.contextmanager
def _token_mode(asks_for_token: bool) -> Iterator[None]:
    """Disable token authentication in the `with` block, unless the cluster requires a token or RAY_AUTH_MODE is set.

    If this process used a local token that the cluster does not know, the cluster's workers could not call it.
    """
    if asks_for_token or AUTH_MODE in os.environ:
        yield
        return
    os.environ[AUTH_MODE] = "disabled"
    try:
        yield
    finally:
        del os.environ[AUTH_MODE]


def _keep_to_loopback() -> None:
    os.environ[LOOPBACK_ONLY] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray already read the environment variable when it was imported
