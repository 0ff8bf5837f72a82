"""Provide fixtures shared by the tests of the pool of rollout engines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from scripted_engines import Actor, Script

from policy_rl.rollouts import engine_set


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()

    def remote(**options):
        script.options.append(options)
        return lambda _: SimpleNamespace(remote=lambda: Actor(script))

    def kill(actor: Actor) -> None:
        actor.killed = True

    monkeypatch.setattr(engine_set, "ray", SimpleNamespace(remote=remote))
    monkeypatch.setattr(engine_set.actors, "kill", kill)
    monkeypatch.setattr(engine_set, "engine_resources", lambda engine, size: ([engine] * size, {"num_cpus": 1}))
    return script
