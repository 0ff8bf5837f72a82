"""Manage Ray in one place: join a cluster or start Ray locally, and detect when it is gone.

connect(config.ray_address)                 # called by every command that uses actors
result = run(main())                        # asyncio.run that raises EngineStoppedError when Ray is gone
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mmprm import orphans
from mmprm.errors import EngineStoppedError, SetupError
from mmprm.signals import kept_handlers

T = TypeVar("T")

REACH_SECONDS = 10.0
"""Time to try to connect to an address before it counts as unreachable, in seconds."""
HEALTH_SECONDS = 30.0
"""Time for the process at an address to pass Ray's health check, in seconds."""
CHECK_SECONDS = 5.0
ANSWER_SECONDS = 20.0
"""Time for Ray to answer a query about its own node before it counts as gone, in seconds."""
CLOSE_SECONDS = 5.0
"""Time for a command to end once Ray is gone, in seconds."""
AUTH_MODE = "RAY_AUTH_MODE"
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""If set to 0, Ray uses 127.0.0.1 as this machine's address on every platform, and listens only there."""

_gone: str | None = None
_nodes: list[dict[str, Any]] = []


def connect(address: str | None = None) -> bool:
    """Join the Ray cluster at `address`, or start Ray locally; return whether this call did either.

    Without an address, that of RAY_ADDRESS or of a local `ray start` is used. A Ray that is started here listens on the
    loopback interface only. Raises SetupError, which names the address and its source, if no Ray answers there or if
    Ray fails to start.
    """
    import ray

    if ray.is_initialized():
        return False
    found, source = cluster_address(address)
    asks_for_token = True
    if found is not None:
        asks_for_token = _check_reachable(found, source)
    else:
        _keep_to_loopback()
    try:
        with kept_handlers(), _token_mode(asks_for_token):
            ray.init(
                address=found or "local",
                include_dashboard=False if found is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,  # at lower levels Ray reports its start at every command
            )
    except Exception as error:  # Ray raises a plain Exception if its own processes fail to start
        reason = f"{type(error).__name__}: {error}".strip()
        if found is not None:
            raise SetupError(f"{source}={found}: Ray cannot be joined there: {reason}") from error
        raise SetupError(
            f"Ray did not start on this machine: {reason}; see whether /tmp and /dev/shm have free space and whether "
            "memory and processes are limited (ulimit -a), or join a cluster with ray_address"
        ) from error
    if found is None:
        orphans.stop_children()  # Ray's processes outlive a driver that is killed
        _hide_token()
    return True


def cluster_address(address: str | None) -> tuple[str | None, str]:
    """Return the address of the cluster to join, or None to start Ray locally, and the setting it came from."""
    if address not in (None, "", "auto"):
        return (None if address == "local" else address), "ray_address"
    if said := os.environ.get("RAY_ADDRESS"):
        if said not in ("auto", "local"):
            return said, "RAY_ADDRESS"
        address = said
    from ray._private import services

    if address == "local":
        return None, "RAY_ADDRESS"
    if started := services.find_bootstrap_address(None):
        return started, "ray start on this machine"
    if address == "auto":
        raise SetupError(
            "ray_address=auto: no Ray runs on this machine; start one with ray start --head, give the cluster's "
            "address, or leave the key out"
        )
    return None, ""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` as asyncio.run does and return its result; raise EngineStoppedError within 30 s after Ray is gone."""
    return asyncio.run(guarded(main))


async def guarded(main: Coroutine[Any, Any, T]) -> T:
    """Return the result of `main`; raise EngineStoppedError if Ray is gone before it ends."""
    task, watch = asyncio.ensure_future(main), asyncio.ensure_future(_until_gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            reason = watch.result()
            _abandon(reason)
            task.cancel()
            await asyncio.wait({task}, timeout=CLOSE_SECONDS)
            raise EngineStoppedError(f"{reason}; what was finished is kept, and the same command resumes from there")
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            if _gone is None:
                await asyncio.gather(task, return_exceptions=True)


def is_gone() -> bool:
    """Return whether Ray was running and is gone: it no longer answers and must not be called."""
    return _gone is not None


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's living nodes as `guarded` last saw them, some seconds ago; unlike Ray itself, answers at once."""
    return [node for node in _nodes if node["Alive"]]


def kill(actor: Any) -> None:
    """Kill an actor's process; do nothing if Ray is gone, because it would not answer."""
    if _gone is None:
        import ray

        ray.kill(actor)


def shutdown() -> None:
    """Disconnect from Ray; do nothing if it is gone."""
    if _gone is None:
        import ray

        ray.shutdown()


async def _until_gone() -> str:
    """Return the reason as soon as Ray is gone."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        import ray

        if not ray.is_initialized():
            continue
        if reason := await _state():
            return reason


async def _state() -> str | None:
    """Return why Ray is gone, or None while it works. The query runs in a thread, because it may never return."""
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
        if node is not None and (dead := node.dead_processes()):  # processes started by this process
            return f"Ray is gone: its {dead[0][0]} has ended"
        own = ray.get_runtime_context().get_node_id()
        _nodes[:] = ray.nodes()
        here = next((each for each in _nodes if each["NodeID"] == own), None)
        if here is not None and not here["Alive"]:
            return (
                f"Ray is gone: this machine's raylet has ended ({here.get('DeathReasonMessage') or 'no reason given'})"
            )
    except Exception as error:  # Ray raises many exception types in a client whose other side is gone
        if ray.is_initialized():
            return f"Ray is gone: {type(error).__name__}: {error}"
    return None


def _abandon(reason: str) -> None:
    """Make no further calls to Ray, including at the exit of this process: they would wait for an answer."""
    import ray

    global _gone
    _gone = reason
    atexit.unregister(ray.shutdown)


def _hide_token() -> None:
    """Make the token that grants access to a cluster readable by its owner only; Ray makes it readable by everyone."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray/auth_token").chmod(0o600)


@contextlib.contextmanager
def _token_mode(asks_for_token: bool) -> Iterator[None]:
    """Keep ray.init from using a token that it finds if the cluster has none: no worker could call this process."""
    if asks_for_token or AUTH_MODE in os.environ:
        yield
        return
    os.environ[AUTH_MODE] = "disabled"
    try:
        yield
    finally:
        del os.environ[AUTH_MODE]


def _has_token() -> bool:
    from ray._raylet import AuthenticationTokenLoader

    return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def _keep_to_loopback() -> None:
    os.environ[LOOPBACK_ONLY] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # read when ray was imported


def _check_reachable(address: str, source: str) -> bool:
    """Return whether the Ray at the address asks for a token.

    Raises SetupError unless a Ray answers there: Ray itself would retry silently for minutes.
    """
    way_out = "start it there, give another address, or leave it out for a Ray of this machine's own"
    if source == "RAY_ADDRESS":
        way_out = "start it there, or unset RAY_ADDRESS"
    elif source != "ray_address":
        way_out = "run ray stop to forget it, or ray start --head to start it again"
    client = address.startswith("ray://")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise SetupError(f"{source}={address}: must be host:port, for example 10.0.0.1:6379; {way_out}")
    refusal = _refusal(host.strip("[]"), int(port))
    if refusal is not None:
        raise SetupError(f"{source}={address}: no Ray listens there ({refusal}); {way_out}")
    if client:
        return True
    reason = _ill_health(host, port, "disabled", f"{source}={address}", way_out)
    if reason is None:
        return False
    if "AuthenticationError" in reason and _has_token():
        reason = _ill_health(host, port, "token", f"{source}={address}", way_out)
    if reason is None:
        return True
    if "AuthenticationError" in reason:
        raise SetupError(
            f"{source}={address}: the Ray there asks for its token, and this machine has "
            f"{'another one' if _has_token() else 'none'}: copy ~/.ray/auth_token of the machine on which the head was "
            "started to here, or name a copy of it by RAY_AUTH_TOKEN_PATH"
        )
    raise SetupError(f"{source}={address}: no healthy Ray answers there ({reason}); {way_out}")


def _ill_health(host: str, port: str, mode: str, what: str, way_out: str) -> str | None:
    """Return why the Ray at the address fails its health check, or None if it passes.

    It is asked in this authentication mode, unless the environment sets one.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    environment = {AUTH_MODE: mode} | os.environ
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=HEALTH_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"{what}: what listens there does not answer as Ray in {HEALTH_SECONDS:g} s; {way_out}"
        ) from None
    return (asked.stderr.strip().splitlines() or ["no reason given"])[-1] if asked.returncode else None


def _refusal(host: str, port: int) -> str | None:
    """Return why nothing can be reached at the address, or None if something listens there."""
    end = time.monotonic() + REACH_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, end - time.monotonic())):
                return None
        except OSError as error:
            if time.monotonic() + 1 > end or isinstance(error, socket.gaierror):
                return error.strerror or str(error)
            time.sleep(1)  # a head node may be starting
