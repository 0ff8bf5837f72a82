"""Test weight transfer to engines that die, and the removal of files left by a killed run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from scripted_rl import make_config
from torch import nn

from mmprm.errors import TrainingError
from policy_rl import run
from policy_rl.weights.config import WeightsConfig
from policy_rl.weights.transfer import FileTransfer, ModelWeights, shared_folder
from policy_rl.weights.vllm import EngineClient


def test_an_engine_that_fails_in_a_transfer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(_: Any) -> None:
        raise RayActorError

    monkeypatch.setattr("ray.wait", lambda calls, timeout: (calls, []))
    monkeypatch.setattr("ray.get", dead)
    engine = SimpleNamespace(worker_call=SimpleNamespace(remote=lambda *_: "call"))
    client = EngineClient([engine], 1, 5.0)
    client.version = 3
    with pytest.raises(
        TrainingError,
        match=r"failed while the weights of version 3 were sent to it: start_weight_update of 1 engines .* checkpoint",
    ):
        client.start_weight_update()


def test_files_of_a_trainer_that_was_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer could not remove them itself, because its ranks hang or are dead."""
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
