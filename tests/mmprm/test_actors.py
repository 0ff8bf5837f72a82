"""Test joining a Ray cluster: where the address comes from, and the errors if no Ray answers."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from mmprm import actors, ray_address
from mmprm.errors import EngineStoppedError, SetupError


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private import services

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test in this process may have joined a cluster
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    monkeypatch.setattr(ray_address, "REACH_SECONDS", 1.0)


def test_the_key_precedes_the_environment_and_ray_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    assert ray_address.cluster_address(None) == (None, "")
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: "a:1")
    assert ray_address.cluster_address(None) == ("a:1", "ray start on this machine")
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    assert ray_address.cluster_address(None) == ray_address.cluster_address("auto") == ("b:2", "RAY_ADDRESS")
    assert ray_address.cluster_address("c:3") == ("c:3", "ray_address")
    assert ray_address.cluster_address("local") == (None, "ray_address")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_address.cluster_address(None) == (None, "RAY_ADDRESS")


def test_auto_without_a_cluster_is_refused() -> None:
    with pytest.raises(SetupError, match="ray_address=auto: no Ray runs on this machine"):
        ray_address.cluster_address("auto")


@pytest.mark.parametrize("source", ["ray_address", "RAY_ADDRESS", "ray start on this machine"])
def test_an_address_where_nothing_listens_is_named_with_its_source(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    address = "127.0.0.1:9"
    if source == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    elif source != "ray_address":
        monkeypatch.setattr(services, "find_bootstrap_address", lambda _: address)
    way_out = {"ray_address": "leave it out", "RAY_ADDRESS": "unset RAY_ADDRESS"}.get(source, "ray stop")
    with pytest.raises(SetupError, match=f"{source}={address}: no Ray listens there .*{way_out}"):
        actors.connect(address if source == "ray_address" else None)


def test_a_server_other_than_ray_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_address, "HEALTH_SECONDS", 3.0)
    monkeypatch.setattr(ray_address, "HEALTH_NOTICE_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            SetupError, match=f"ray_address={address}: (the process that listens there did not answer|no healthy)"
        ):
            actors.connect(address)
    assert capsys.readouterr().err == f"waiting up to 3 s for Ray at {address} to answer\n"


def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(SetupError, match="ray_address=head: must be host:port"):
        actors.connect("head")


def test_a_failed_ray_start_is_an_mmprm_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(actors, "_keep_to_loopback", lambda: None)
    with pytest.raises(SetupError, match=r"Ray did not start on this machine: OSError: .*No space left.*free space"):
        actors.connect()


@pytest.mark.parametrize(("allowed", "counted", "expected"), [(2, 8, 2), (8, 8, 8), (8, 4, 4), (8, 0.5, 1)])
def test_a_local_ray_has_only_the_cores_that_this_process_may_use(
    allowed: int, counted: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    asked: dict[str, object] = {}
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)))
    monkeypatch.setattr(ray, "init", lambda **keys: asked.update(keys))
    for name in ("_keep_to_loopback", "_hide_token"):
        monkeypatch.setattr(actors, name, lambda: None)
    monkeypatch.setattr(actors.orphans, "stop_children", lambda: None)
    actors.connect("local")
    assert (asked["address"], asked["num_cpus"]) == ("local", expected)


def test_workers_of_a_local_ray_have_the_priority_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    seen: list[str | None] = []
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get(actors.NICENESS)))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name in ("_keep_to_loopback", "_hide_token"):
        monkeypatch.setattr(actors, name, lambda: None)
    monkeypatch.setattr(actors.orphans, "stop_children", lambda: None)
    monkeypatch.setattr(actors, "check_reachable", lambda *_: True)
    monkeypatch.setenv(actors.NICENESS, "")  # so that the variable is restored after the test
    monkeypatch.delenv(actors.NICENESS)
    actors.connect("10.0.0.1:6379")
    actors.connect("local")
    monkeypatch.setenv(actors.NICENESS, "5")
    actors.connect("local")
    assert seen == [None, "0", "5"], "a joined cluster or the user may have set another value"


def test_a_command_ends_when_ray_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed: list[str] = []

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append("yes")

    async def gone() -> str:
        return "Ray is gone: its raylet has ended"

    monkeypatch.setattr(actors, "_until_gone", gone)
    monkeypatch.setattr(actors, "_abandon", lambda reason: None)
    with pytest.raises(EngineStoppedError, match="its raylet has ended; finished work is kept"):
        actors.run(waiting())
    assert closed == ["yes"]


def test_results_and_errors_pass_through() -> None:
    async def value() -> int:
        return 3

    async def error() -> None:
        raise SetupError("x")

    assert actors.run(value()) == 3
    with pytest.raises(SetupError, match="x"):
        actors.run(error())
