"""Test how long a pool waits for machines, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmprm import actors
from mmprm.errors import SamplingError
from mmprm.sampling import pool
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.pool import SamplerPool


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return which calls the two GPU engines answer; other calls never return."""
    known: set[str] = set()
    killed: list[Any] = []

    def method(name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: name)

    def wait(references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return [each for each in references if each in known], [each for each in references if each not in known]

    engine = SimpleNamespace(is_placed=method("placed"), start=method("start"))
    monkeypatch.setattr(pool, "engine_resources", lambda engine, size: ([engine] * 2, {"num_gpus": 4}))
    monkeypatch.setattr("ray.remote", lambda **_: lambda _: SimpleNamespace(remote=lambda: engine))
    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr("ray.get", lambda references: [True for _ in references])
    monkeypatch.setattr(actors, "free_resources", lambda: "8 CPUs and 3 GPUs")
    monkeypatch.setattr(actors, "kill", killed.append)
    return known


def test_a_pool_without_machines_says_what_is_missing(answered: set[str]) -> None:
    missing = r"machines for 2 engines of owner/name \(4 × GPU each\); Ray has 8 CPUs and 3 GPUs free"
    way_out = "add machines .* or raise start_timeout_seconds"
    with pytest.raises(SamplingError, match=rf"^timed out after 0\.1 s waiting for {missing}; {way_out}$"):
        SamplerPool(EngineConfig(model="owner/name"), start_timeout_seconds=0.1)


def test_the_limit_is_for_machines_alone(answered: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answered |= {"placed", "start"}
    limits = []
    waited = actors.wait_all
    monkeypatch.setattr(actors, "wait_all", lambda *arguments: limits.append(arguments[2:3]) or waited(*arguments))
    SamplerPool(EngineConfig(model="owner/name"), start_timeout_seconds=60)
    assert limits == [(60,), ()]
