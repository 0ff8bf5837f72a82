"""Test max_staleness: how old responses are, and that no problem is lost or repeated, with scripted engines."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scripted_rl import PROBLEMS, WEIGHED, ScriptedPool, ScriptedTrainer, make_config, make_loop, metrics_of

from mmprm.errors import ConfigError, EngineStoppedError
from mmprm.types import Problem
from policy_rl.rollouts.collected import Collected
from policy_rl.rollouts.curriculum import Prompts
from policy_rl.rollouts.step_queue import StepQueue
from policy_rl.types import Group
from policy_rl.weights.config import transport_of


class LabelingPool(ScriptedPool):
    """Takes requests without a version, and labels groups with the version at their start, as RolloutPool does."""

    slow = 0.0

    async def sample(self, problem: Problem, n: int, seed: int, version: int | None, *limit: Any) -> Group:
        assert version is None
        group = await super().sample(problem, n, seed, self.version, *limit)
        await asyncio.sleep(self.slow)
        return group


def stale(output: Path, staleness: int, **changes: Any) -> Any:
    return make_config(output, max_staleness=staleness, trainer=WEIGHED, **changes)


def uses(trainer: ScriptedTrainer) -> Counter[str]:
    """Count how often each problem was trained on."""
    return Counter(each.problem.id for batch in trainer.batches for each in batch)


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_responses_are_at_most_this_many_updates_old(tmp_path: Path, staleness: int) -> None:
    config = stale(tmp_path / "run", staleness, steps=8)
    asyncio.run(make_loop(config, LabelingPool(), ScriptedTrainer(delay=0.05)).run())
    found = [line["staleness"] for line in metrics_of(tmp_path / "run")]
    assert found == [min(step, staleness) for step in range(8)], "the engines are faster than the trainer"


def test_sampling_ahead_ends_with_the_passes_over_the_problems(tmp_path: Path) -> None:
    """With a filter, the number of steps is not known before; here, nothing is filtered out."""
    config = stale(tmp_path / "run", 3, steps=None, episodes=1, filter={"low": 0.0, "high": 1.0})
    loop = make_loop(config, LabelingPool(), problems=PROBLEMS[:8])
    asyncio.run(loop.run())
    assert len(metrics_of(tmp_path / "run")) == 2, "two steps of 4 of the 8 problems"
    assert loop._collector.passes == 1


@pytest.mark.parametrize(("staleness", "transport"), [(0, "nccl"), (2, "file")])
def test_engines_that_sample_get_weights_as_files(tmp_path: Path, staleness: int, transport: str) -> None:
    """On GPUs, the other transports change an engine's weights before its requests are interrupted."""
    weights = stale(tmp_path, staleness).weights_transfer
    assert transport_of(weights, gpu=True, colocated=False) == transport


def test_slow_engines_give_fresh_responses(tmp_path: Path) -> None:
    pool = LabelingPool()
    pool.slow = 0.1
    asyncio.run(make_loop(stale(tmp_path / "run", 2), pool).run())
    assert max(line["staleness"] for line in metrics_of(tmp_path / "run")) <= 2


def test_staleness_zero_is_synchronous_bit_for_bit(tmp_path: Path) -> None:
    """Also if its responses may be interrupted, as there are none in flight when the weights change."""
    trainers = [ScriptedTrainer(delay=0.01) for _ in range(3)]
    asyncio.run(make_loop(make_config(tmp_path / "0", trainer=WEIGHED), trainer=trainers[0]).run())
    asyncio.run(make_loop(stale(tmp_path / "1", 0), trainer=trainers[1]).run())
    loop = make_loop(stale(tmp_path / "2", 0), LabelingPool(), trainers[2])
    loop._collector._interruptible = True
    asyncio.run(loop.run())
    assert len({trainer.weights for trainer in trainers}) == 1
    assert metrics_of(tmp_path / "0") == metrics_of(tmp_path / "1") == metrics_of(tmp_path / "2")


def test_a_resumed_run_trains_on_every_problem_once(tmp_path: Path) -> None:
    """The engines stop during the third step; groups in flight are then sampled again, with newer weights."""

    class Dying(LabelingPool):
        async def sample(self, problem: Problem, n: int, seed: int, version: int | None, *limit: Any) -> Group:
            if self.version == 2:
                raise EngineStoppedError("engine 1 of 1 died")
            return await super().sample(problem, n, seed, version, *limit)

    problems = [Problem(f"p{number}", "?", "right") for number in range(24)]
    config = stale(tmp_path / "run", 2, save_every=0)
    first, second = ScriptedTrainer(), ScriptedTrainer()
    with pytest.raises(EngineStoppedError, match="engine 1 of 1 died"):
        asyncio.run(make_loop(config, Dying(), first, problems).run())
    assert first.calls[-1] in ("save 2", "save 3", "save 4")
    asyncio.run(make_loop(config, LabelingPool(), second, problems).run())
    assert uses(first) + uses(second) == Counter({problem.id: 3 for problem in problems}), "3 responses each"


def test_a_checkpoint_covers_finished_and_unfinished_steps(tmp_path: Path) -> None:
    """With a filter, steps that are collected at the same time pass their surplus on."""
    strict = {"filter": {"low": 0.3, "high": 0.6, "rounds": 4}, "steps": 4}
    trainer = ScriptedTrainer(delay=0.02)
    loop = make_loop(stale(tmp_path / "run", 2, save_every=1, **strict), LabelingPool(), trainer)
    states: list[dict[str, Any]] = []
    save = trainer.save

    def saving(folder: Path, extra: dict[str, Any], keep: int) -> None:
        states.append(extra)
        save(folder, extra, keep)

    trainer.save = saving
    asyncio.run(loop.run())
    for state in states:
        again = state["collector"]["again"]
        assert again == sorted(set(again))
        assert all(position < state["collector"]["position"] for position in again)
        assert {int(step) - state["step"] for step in state["pending"]} <= {1, 2}
    assert states[-1]["pending"] == {}


def test_positions_to_take_again_come_first() -> None:
    prompts, fresh = Prompts(PROBLEMS, 0), Prompts(PROBLEMS, 0)
    order = prompts.take(14)
    fresh.position, fresh.again = 12, [3, 9]
    assert fresh.take(4) == [order[3], order[9], order[12], order[13]]
    assert (fresh.position, fresh.again) == (14, [])


async def test_a_failed_step_is_not_stored_and_others_are_canceled() -> None:
    async def collect(step: int) -> Collected:
        if step == 1:
            raise EngineStoppedError("gone")
        await asyncio.sleep(0 if step == 2 else 60)
        return Collected(rounds=step)

    queue = StepQueue(collect)
    for step in (1, 2, 3):
        queue.start(step)
    with pytest.raises(EngineStoppedError):
        await queue.wait(1)
    await queue.wait(2)
    assert {step: each["rounds"] for step, each in queue.state().items()} == {"2": 2}
    await queue.cancel()
    queue.drop(2)
    assert not queue.is_empty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {}}, r"max_staleness=2 trains on responses of older weights.*importance_cap=2"),
        ({"one_step_ahead": True}, r"max_staleness=2 cannot be combined with one_step_ahead=true"),
        (
            {"rollouts": {"colocated": True}},
            r"max_staleness=2 needs engines on their own GPUs.*leave max_staleness out",
        ),
        (
            {"environment": {"path": "sokoban"}},
            r"max_staleness=2 cannot be combined with environment.*one_step_ahead=true",
        ),
        (
            {"weights": {"transport": "nccl"}},
            r"max_staleness=2 cannot be combined with weights\.transport=nccl.*leave weights\.transport out",
        ),
        (
            {"rollouts": {"branching": {}}, "credit": {"source": "tree"}},
            r"max_staleness=2 cannot be combined with rollouts\.branching",
        ),
    ],
)
def test_settings_that_staleness_excludes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, **({"max_staleness": 2, "trainer": WEIGHED} | changes))
