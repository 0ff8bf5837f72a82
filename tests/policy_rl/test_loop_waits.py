"""Test that long calls do not block the event loop, and that engine deaths during them are noticed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_rl import ScriptedPool, ScriptedTrainer, make_config, make_loop

from mmprm.errors import EngineStoppedError, TrainingError
from policy_rl.weights import publish
from policy_rl.weights.transfer import Published


class SlowSaves(ScriptedTrainer):
    """Saves a checkpoint only when the event loop gets to run."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.in_time = True

    def save(self, folder: Path, extra: dict[str, Any], keep: int) -> None:
        self.calls.append("saving")
        self.in_time &= self.released.wait(60)
        super().save(folder, extra, keep)


async def release_while_saving(trainer: SlowSaves) -> None:
    while "saving" not in trainer.calls:
        await asyncio.sleep(0.01)
    trainer.released.set()


async def run_beside(loop: Any, trainer: SlowSaves) -> None:
    heartbeat = asyncio.create_task(release_while_saving(trainer))
    try:
        await loop.run()
    finally:
        heartbeat.cancel()


def test_the_event_loop_runs_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    trainer = SlowSaves()
    asyncio.run(run_beside(make_loop(make_config(tmp_path / "run", steps=2), trainer=trainer), trainer))
    assert trainer.in_time


class DyingPool(ScriptedPool):
    """Stops its engines in the third step."""

    async def sample(self, problem: Any, n: int, seed: int, version: int, max_tokens: int | None = None) -> Any:
        if version == 2:
            raise EngineStoppedError("all engines have died")
        return await super().sample(problem, n, seed, version, max_tokens)


def test_the_event_loop_runs_while_the_engines_death_is_saved(tmp_path: Path) -> None:
    trainer = SlowSaves()
    loop = make_loop(make_config(tmp_path / "run"), DyingPool(), trainer)
    with pytest.raises(EngineStoppedError, match="all engines have died"):
        asyncio.run(run_beside(loop, trainer))
    assert trainer.in_time
    assert "save 2" in trainer.calls


class SleeplessPool(ScriptedPool):
    """Loses a sleeping engine in the third step."""

    async def sleep(self) -> None:
        if self.version == 2:
            raise EngineStoppedError("engine 1 of 1 to fall asleep: the actor died")


def test_an_engine_that_dies_before_an_update_costs_one_step(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    loop = make_loop(make_config(tmp_path / "run", rollouts={"colocated": True}), SleeplessPool(), trainer)
    with pytest.raises(EngineStoppedError, match="to fall asleep"):
        asyncio.run(loop.run())
    assert [call for call in trainer.calls if call.startswith("save")] == ["save 2"]
    assert trainer.updates == 2


class Broadcasting(ScriptedTrainer):
    """Ends its first broadcast only if its ranks are killed."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []
        self._killed = threading.Event()

    def publish(self, version: int, probe_token_ids: Sequence[int], dtype: torch.dtype) -> Published:
        self._killed.wait(60)
        raise TrainingError("rank 0 of the trainer has died")

    def abandon(self, reason: str) -> None:
        self.reasons.append(reason)
        self._killed.set()


class LosingPool(ScriptedPool):
    async def until_lost(self) -> EngineStoppedError:
        await asyncio.sleep(0.01)
        return EngineStoppedError("engine 1 of 2: the actor died; its log is /x.err")


def test_a_broadcast_to_a_dead_engine_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "REPORT_SECONDS", 0.05)
    trainer = Broadcasting()
    loop = make_loop(make_config(tmp_path / "run"), LosingPool(), trainer)
    cause = r"weights of version 0 were sent to it: engine 1 of 2: .* /x\.err; run the same command again to resume"
    with pytest.raises(TrainingError, match=cause):
        asyncio.run(asyncio.wait_for(loop.run(), 120))
    assert trainer.reasons == ["engine 1 of 2: the actor died; its log is /x.err"]
