"""Test that a stopped run resumes as if it had not been stopped, with a scripted and with a real trainer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_rl import (
    KINDS,
    PROBLEMS,
    ScriptedPool,
    ScriptedTrainer,
    make_config,
    make_loop,
    metrics_of,
)

from mmprm.errors import CheckpointError, EngineStoppedError
from mmprm.prompts import PromptConfig
from mmprm.types import Problem
from policy_rl.config import RLConfig
from policy_rl.metrics import metric_names
from policy_rl.run_folder import Summary
from policy_rl.trainer.config import TrainerConfig, UpdateConfig
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import Group
from policy_rl.weights.transfer import FileTransfer


class StopsAt(ScriptedTrainer):
    """Receives SIGTERM during the update of a step."""

    def __init__(self, update: int) -> None:
        super().__init__()
        self._at = update

    def update(self, samples, progress=None):
        if self.updates + 1 == self._at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().update(samples, progress)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, kind: str, capsys) -> None:
    whole, parts = make_config(tmp_path / "whole", **KINDS[kind]), make_config(tmp_path / "parts", **KINDS[kind])
    trainer, pool = ScriptedTrainer(), ScriptedPool()
    assert asyncio.run(make_loop(whole, pool, trainer).run()).finished
    first = asyncio.run(make_loop(parts, trainer=StopsAt(3)).run())
    assert not first.finished
    assert "SIGTERM; saved after step" in capsys.readouterr().out
    assert not (tmp_path / "parts/policy").exists()
    resumed, second_pool = ScriptedTrainer(), ScriptedPool()
    last = asyncio.run(make_loop(parts, second_pool, resumed).run())
    assert (last.finished, last.policy) == (True, tmp_path / "parts/policy")
    assert (resumed.weights, resumed.updates) == (trainer.weights, trainer.updates)
    assert resumed.progress == trainer.progress[-len(resumed.progress) :]
    assert pool.asked[-len(second_pool.asked) :] == second_pool.asked
    assert len(second_pool.asked) < len(pool.asked)
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "parts")]
    assert samples[0] == samples[1]


class LocalTrainer:
    """Runs a Trainer in this process, with the interface of a TrainerGroup."""

    def __init__(self, model: Path, folder: Path) -> None:
        optimization = UpdateConfig(precision="fp32", micro_batch_tokens=400, learning_rate=1e-3)
        config = TrainerConfig(optimization=optimization)
        self.trainer = Trainer(str(model), config, PromptConfig(preset="plain"), 1.0, 8)
        self.trainer.open_transfer(lambda rank: FileTransfer(folder / "shared"))
        self.check = self.trainer.limits.check
        self._encoder = self.trainer._encoder
        for name in ("update", "publish", "save", "resume", "save_model"):
            setattr(self, name, getattr(self.trainer, name))

    def log_probs(self, samples, reference_only=False):
        found = self.trainer.log_probs(samples, reference_only)
        return [replace(each, old=found[position].old) for position, each in enumerate(samples)]


class HonestPool(ScriptedPool):
    """Counts the prompt's tokens as the trainer does."""

    def __init__(self, trainer: LocalTrainer) -> None:
        super().__init__()
        self._encode = trainer._encoder._encode

    async def sample(self, problem: Problem, *arguments: Any, **settings: Any) -> Group:
        group = await super().sample(problem, *arguments, **settings)
        return replace(group, prompt_tokens=len(self._encode(problem).ids_P))


def test_resumed_with_a_real_trainer(random_policy_folder: Path, tmp_path: Path) -> None:
    """Weights, optimizer and schedule are restored: two steps and two more equal four, bit by bit."""
    torch.set_num_threads(1)
    problems = [Problem(f"p{i}", f"{i} + 3 = ?", "right") for i in range(5)]
    weights: dict[str, dict[str, torch.Tensor]] = {}

    def train(name: str, stop_after: int | None) -> None:
        more = {"batch": {"prompts": 4, "group_size": 3, "updates": 2}, "steps": 4, "save_every": 2}
        config = make_config(tmp_path / name, **more)
        trainer = LocalTrainer(random_policy_folder, tmp_path / name)
        loop = make_loop(config, HonestPool(trainer), trainer, problems, check=trainer.check)
        if stop_after:
            step = loop._step

            async def stopping(number: int):
                if number > stop_after:
                    raise EngineStoppedError("the machine is gone")
                return await step(number)

            loop._step = stopping
            with pytest.raises(EngineStoppedError):
                asyncio.run(loop.run())
            return
        asyncio.run(loop.run())
        weights[name] = {key: value.clone() for key, value in trainer.trainer._policy.state_dict().items()}

    train("whole", None)
    train("parts", 3)
    train("parts", None)
    assert (tmp_path / "parts/policy/config.json").is_file()
    for key, value in weights["whole"].items():
        assert torch.equal(value, weights["parts"][key]), key
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    names = metric_names(make_config(tmp_path, process={"scorer": {"prm": "x"}}))
    assert {name for row in rows for name in row} - {"kind", "step"} <= names, "the metrics available to alarms"


def test_training_progress_is_saved_when_the_engines_stop(tmp_path: Path) -> None:
    """They stop during the rollouts of step 3; the same command then takes the steps of an uninterrupted run."""

    class Dying(ScriptedPool):
        async def sample(self, problem: Problem, n: int, seed: int, version: int, *limit: Any) -> Group:
            if version == 2:
                raise EngineStoppedError("engine 1 of 1 died")
            return await super().sample(problem, n, seed, version, *limit)

    whole, first, second = ScriptedTrainer(), ScriptedTrainer(), ScriptedTrainer()
    asyncio.run(make_loop(make_config(tmp_path / "whole"), trainer=whole).run())
    config = make_config(tmp_path / "run", save_every=0)
    with pytest.raises(EngineStoppedError, match="engine 1 of 1 died"):
        asyncio.run(make_loop(config, Dying(), first).run())
    assert [call for call in first.calls if call.startswith("save")] == ["save 2"]
    asyncio.run(make_loop(config, trainer=second).run())
    assert second.weights == whole.weights


def test_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", save_every=2)
    asyncio.run(make_loop(config).run())
    other = make_config(tmp_path / "run", save_every=2, batch={"prompts": 4, "group_size": 2})
    with pytest.raises(CheckpointError, match="belongs to a run with different settings: batch"):
        asyncio.run(make_loop(other).run())
    with pytest.raises(CheckpointError, match="belongs to a run with different settings: problems"):
        asyncio.run(make_loop(config, problems=PROBLEMS[1:]).run())
    same = make_config(tmp_path / "run", save_every=3, eval_every=1)
    summary = asyncio.run(_ended(same))
    assert summary.steps == 6


async def _ended(config: RLConfig) -> Summary:
    """Check that a finished run does not train again."""
    trainer = ScriptedTrainer()
    trainer.save_model = lambda folder: None
    summary = await make_loop(config, trainer=trainer).run()
    assert "update" not in trainer.calls
    return summary
