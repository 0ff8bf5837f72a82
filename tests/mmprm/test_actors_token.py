"""Test the authentication token of a Ray cluster: it is used if present, and its absence is reported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from mmprm import actors, ray_address
from mmprm.errors import SetupError

REFUSED = "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing"


@pytest.fixture
def listener() -> Iterator[str]:
    """Return an address on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | None]:
    """Return the authentication mode of each health check, all of which Ray rejects for lack of a token."""
    found: list[str | None] = []

    def refuse(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        found.append(env.get("RAY_AUTH_MODE"))
        return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{REFUSED}\n")

    monkeypatch.setattr(ray_address.subprocess, "run", refuse)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return found


def test_a_missing_token_is_reported(listener: str, modes: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "has_token", lambda: False)
    with pytest.raises(SetupError, match=r"asks for its token, and this machine has none; copy ~/\.ray/auth_token"):
        ray_address.check_reachable(listener, "ray_address")
    assert modes == ["disabled"]


def test_an_existing_token_is_used(listener: str, modes: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "has_token", lambda: True)
    with pytest.raises(SetupError, match="this machine has another one; copy"):
        ray_address.check_reachable(listener, "RAY_ADDRESS")
    assert modes == ["disabled", "token"]


def test_an_explicit_mode_is_kept(listener: str, modes: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "has_token", lambda: True)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SetupError):
        ray_address.check_reachable(listener, "RAY_ADDRESS")
    assert set(modes) == {"disabled"}


def test_a_cluster_without_a_token_is_joined_without_one(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, its workers, which have no token, could not answer this process."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    healthy = subprocess.CompletedProcess((), 0, "", "")
    monkeypatch.setattr(ray_address.subprocess, "run", lambda *_, **__: healthy)
    monkeypatch.setattr(ray_address, "has_token", lambda: True)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    modes: list[str | None] = []
    monkeypatch.setattr(ray, "init", lambda **_: modes.append(os.environ.get("RAY_AUTH_MODE")))
    assert actors.connect(listener)
    assert (modes, "RAY_AUTH_MODE" in os.environ) == (["disabled"], False)


def test_a_token_is_found_at_rays_default_path(tmp_path: Path) -> None:
    """Runs in a separate process, because Ray reads the token only once."""
    code = "from mmprm.ray_address import has_token; print(has_token())"
    (tmp_path / "token").write_text("0" * 64)
    for values, found in (({}, "False"), ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, "True")):
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"} | values
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == found
