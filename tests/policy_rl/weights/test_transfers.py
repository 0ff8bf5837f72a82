"""TrainerGroup and `mmprm rl` around the transfer of weights, on ranks without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from scripted_rl import make_config
from torch import nn

from mmprm.errors import EngineStoppedError, TrainingError
from mmprm.prompts import PromptConfig
from policy_rl import run
from policy_rl.trainer import group as trainer_group
from policy_rl.trainer.config import TrainerConfig
from policy_rl.trainer.group import TrainerGroup
from policy_rl.weights.config import WeightsConfig
from policy_rl.weights.transfer import FileTransfer, ModelWeights, shared_folder
from policy_rl.weights.vllm import EngineClient


class Rank:
    """Says by whose transfer it sent what."""

    def __init__(self, events: list[str]) -> None:
        self.events, self.transfer = events, ""
        for name in ("address", "start", "call"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _address(self) -> tuple[str, int]:
        return "localhost", 1

    def _start(self, *_: Any) -> None: ...

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "open_transfer":
            self.transfer = arguments[0](0)
        self.events.append(f"{method} {self.transfer}" + (f" {arguments[0]}" if method == "publish" else ""))
        return arguments[0]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    simple = SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=dict,
        remote=lambda **_: lambda _: SimpleNamespace(remote=lambda: Rank(seen)),
        put=lambda value: value,
        get=lambda value, timeout=None: value,
        wait=lambda calls, timeout: (calls, []),
        kill=lambda actor: None,
    )
    monkeypatch.setattr(trainer_group, "ray", simple)
    return seen


def send(group: TrainerGroup, version: int, again: Callable[[int], Any] | None = None) -> None:
    if again is None:
        group.publish(version, (1, 2), torch.float32)
    else:
        group.publish_again(again, version, (1, 2), torch.float32)


def test_a_replaced_engine_gets_files_and_takes_part_in_later_transfers(events: list[str]) -> None:
    group, engines = TrainerGroup("m", TrainerConfig(), PromptConfig(), 1.0, 1), ["a", "b"]
    group.open_transfer(lambda rank, engines: "".join(engines), lambda: list(engines))
    send(group, 1)
    send(group, 2)
    engines[0] = "c"
    send(group, 2, again=lambda rank: "files")
    send(group, 3)
    send(group, 4)
    assert events == [
        *("open_transfer ab", "publish ab 1", "publish ab 2"),
        *("open_transfer files", "publish files 2"),
        *("open_transfer cb", "publish cb 3", "publish cb 4"),
    ]


def test_weights_that_the_trainer_no_longer_has_are_not_sent_for_them(events: list[str]) -> None:
    group = TrainerGroup("m", TrainerConfig(), PromptConfig(), 1.0, 1)
    group.open_transfer(lambda rank, engines: "gpu", lambda: ["a"])
    send(group, 1)
    group.update([])
    with pytest.raises(EngineStoppedError, match=r"version 1, which the trainer has already updated: resume"):
        send(group, 1, again=lambda rank: "files")
    assert "publish files 1" not in events


def test_an_engine_that_dies_in_a_transfer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(_: Any) -> None:
        raise RayActorError

    monkeypatch.setattr("ray.wait", lambda calls, **_: (calls, []))
    monkeypatch.setattr("ray.get", dead)
    engine = SimpleNamespace(worker_call=SimpleNamespace(remote=lambda *_: "call"))
    client = EngineClient([engine], 1, 5.0)
    client.version = 3
    with pytest.raises(
        TrainingError, match=r"died at start_weight_update, while the weights of version 3 .* checkpoint"
    ):
        client.start_weight_update()


def test_files_of_a_trainer_that_was_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own close never ran: the ranks hang or are dead."""
    config = make_config(tmp_path / "run", weights={"folder": str(tmp_path / "shared")})
    folder = shared_folder(WeightsConfig(folder=str(tmp_path / "shared")), tmp_path / "run")

    class Killed:
        def open_transfer(self, *_: Any) -> None:
            FileTransfer(folder).publish(ModelWeights(nn.Linear(2, 2), torch.float32), 1, ())
            (folder / ".version-00000002.tmp").mkdir()
            raise TrainingError("no end after 3600 s")

        def close(self) -> None: ...

    async def start(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(close=lambda: None, engines=[], probe_token_ids=(1,))

    monkeypatch.setattr(run.actors, "connect", lambda *_: None)
    monkeypatch.setattr("ray.nodes", list)
    monkeypatch.setattr(run, "_start_trainer", lambda *_: Killed())
    monkeypatch.setattr(run.RolloutPool, "start", start)
    with pytest.raises(TrainingError, match="no end after 3600 s"):
        asyncio.run(run._run(config, [], [], ""))
    assert list((tmp_path / "shared").iterdir()) == []
