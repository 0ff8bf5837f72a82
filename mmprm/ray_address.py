"""Find the Ray cluster to join, and check that Ray responds at its address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

from mmprm.errors import SetupError

REACH_SECONDS = 10.0
"""Timeout in seconds for connecting to an address."""
HEALTH_SECONDS = 120.0
"""Timeout in seconds for Ray's health check at an address. The check runs in a process that imports Ray, which may be
slow."""
HEALTH_NOTICE_SECONDS = 30.0
AUTH_MODE = "RAY_AUTH_MODE"


def cluster_address(address: str | None) -> tuple[str | None, str]:
    """Return (address, source) of the Ray cluster to join. The address is None if Ray must be started locally."""
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
            "ray_address=auto: no Ray runs on this machine; start it with ray start --head, give the cluster's "
            "address, or leave the key out"
        )
    return None, ""


def has_token() -> bool:
    """Return whether Ray can find an authentication token on this machine."""
    from ray._raylet import AuthenticationTokenLoader

    return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def check_reachable(address: str, source: str) -> bool:
    """Check that Ray responds at the address, and return whether it requires a token.

    Raises SetupError if it does not respond; ray.init would retry silently for minutes.
    """
    way_out = "start Ray there, give another address, or leave it out to start Ray on this machine"
    if source == "RAY_ADDRESS":
        way_out = "start Ray there, or unset RAY_ADDRESS"
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
    if "AuthenticationError" in reason and has_token():
        reason = _ill_health(host, port, "token", f"{source}={address}", way_out)
    if reason is None:
        return True
    if "AuthenticationError" in reason:
        raise SetupError(
            f"{source}={address}: the Ray there asks for its token, and this machine has "
            f"{'another one' if has_token() else 'none'}; copy ~/.ray/auth_token here from the machine of the head "
            "node, or set RAY_AUTH_TOKEN_PATH to a copy"
        )
    raise SetupError(f"{source}={address}: no healthy Ray answers there ({reason}); {way_out}")


def _ill_health(host: str, port: str, mode: str, what: str, way_out: str) -> str | None:
    """Return the reason why Ray at the address fails its health check, or None if it passes.

    The check uses the authentication mode `mode` unless the environment sets one.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    environment = {AUTH_MODE: mode} | os.environ
    notice = threading.Timer(HEALTH_NOTICE_SECONDS, _say_what_is_awaited, (f"{host}:{port}",))
    notice.start()
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=HEALTH_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"{what}: the process that listens there did not answer as Ray within {HEALTH_SECONDS:g} s; {way_out}"
        ) from None
    finally:
        notice.cancel()
    return (asked.stderr.strip().splitlines() or ["no reason given"])[-1] if asked.returncode else None


def _say_what_is_awaited(address: str) -> None:
    print(f"waiting up to {HEALTH_SECONDS:g} s for Ray at {address} to answer", file=sys.stderr, flush=True)


def _refusal(host: str, port: int) -> str | None:
    """Return the reason why connecting to the address fails, or None if a server accepts the connection."""
    end = time.monotonic() + REACH_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, end - time.monotonic())):
                return None
        except OSError as error:
            if time.monotonic() + 1 > end or isinstance(error, socket.gaierror):
                return error.strerror or str(error)
            time.sleep(1)  # a head node may be starting
