"""Test the decisions of the RL loop with scripted engines and a scripted trainer."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scripted_rl import KINDS, PROBLEMS, ScriptedPool, ScriptedTrainer, make_config, make_loop, metrics_of

from mmprm.errors import TrainingError
from mmprm.types import Problem
from policy_rl.config import RLConfig
from policy_rl.learner import EMPTY_STEPS
from policy_rl.rollouts.config import rollout_seed
from policy_rl.rollouts.curriculum import Prompts
from policy_rl.trainer.batch import minibatches
from policy_rl.weights.transfer import Published


def test_versions_and_seeds(tmp_path: Path) -> None:
    pool = ScriptedPool()
    asyncio.run(make_loop(make_config(tmp_path / "run"), pool).run())
    assert [version for *_, version, _ in pool.asked] == [v for v in range(6) for _ in range(4)]
    epochs = Counter()
    for problem, n, seed, version, most in pool.asked:
        assert (n, most) == (3, None)
        assert seed == rollout_seed(0, version, problem, epochs[problem])
        epochs[problem] += 1
    assert set(epochs.values()) == {2, 3}, "24 prompts from 10 problems: none a third time before all were used twice"


def test_one_step_ahead_samples_during_the_update(tmp_path: Path) -> None:
    pool = ScriptedPool()
    asyncio.run(make_loop(make_config(tmp_path / "run", **KINDS["ahead"]), pool, ScriptedTrainer(delay=0.05)).run())
    assert pool.during_update > 0
    assert [line["staleness"] for line in metrics_of(tmp_path / "run")] == [0, 1, 1, 1, 1, 1]
    assert [version for *_, version, _ in pool.asked] == [v for v in (0, 0, 1, 2, 3, 4) for _ in range(4)]
    pool = ScriptedPool()
    asyncio.run(make_loop(make_config(tmp_path / "sync"), pool, ScriptedTrainer(delay=0.05)).run())
    assert pool.during_update == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        (KINDS["ahead"], []),
        (KINDS["updates"], ["reference_only=False"]),
        ({"trainer": {"loss": {"kl": {"coefficient": 0.1}}}}, ["reference_only=True"]),
        ({"trainer": {"loss": {"kl": {"coefficient": 0.1, "apply_to": "reward"}}}}, ["reference_only=False"]),
        ({"advantage": {"estimator": "gae"}}, ["reference_only=False"]),
    ],
)
def test_old_log_probabilities_only_where_needed(tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    trainer = ScriptedTrainer()
    asyncio.run(make_loop(make_config(tmp_path / "run", steps=1, **changes), trainer=trainer).run())
    assert [call.removeprefix("log_probs ") for call in trainer.calls if call.startswith("log_probs")] == expected


def test_colocated_engines_sleep_while_the_trainer_works(tmp_path: Path) -> None:
    """Before they wake, the trainer frees its cached memory; weights are published after waking and then loaded."""
    pool, trainer = ScriptedPool(), ScriptedTrainer()
    trainer.calls = pool.events  # in one order
    config = make_config(tmp_path / "run", steps=2, save_every=0, rollouts={"colocated": True})
    asyncio.run(make_loop(config, pool, trainer).run())
    sync = ["release_memory", "wake", "publish", "load"]
    assert pool.events[:-1] == [*sync, *("sleep", "update", *sync) * 2]


def test_a_transfer_that_fails_costs_no_rollouts(tmp_path: Path) -> None:
    class Refusing(ScriptedTrainer):
        def publish(self, *_: Any) -> Published:
            raise TrainingError("lm_head.weight exceeds the buffer")

    pool = ScriptedPool()
    with pytest.raises(TrainingError, match="exceeds the buffer"):
        asyncio.run(make_loop(make_config(tmp_path / "run"), pool, Refusing()).run())
    assert pool.asked == []


def test_minibatches_are_whole_groups(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    asyncio.run(make_loop(make_config(tmp_path / "run", steps=1, **KINDS["updates"]), trainer=trainer).run())
    groups = [{each.group for each in batch} for batch in trainer.batches]
    assert [len(each) for each in groups] == [2, 2]
    assert groups[0] | groups[1] == {0, 1, 2, 3}
    every = [each for batch in trainer.batches for each in batch]
    assert [len(share) for share in minibatches(every, 3, "0/1")] in ([6, 3, 3], [3, 6, 3], [3, 3, 6])
    assert minibatches(every, 9, "0/1") != minibatches(every, 9, "0/2"), "a different order in another step"
    assert len(minibatches(every, 9, "0/1")) == 4, "no more updates than groups"


def test_epochs_repeat_the_step_in_another_order(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    batch = {"prompts": 4, "group_size": 3, "updates": 2, "epochs": 3}
    asyncio.run(make_loop(make_config(tmp_path / "run", steps=1, batch=batch), trainer=trainer).run())
    groups = [sorted({each.group for each in batch}) for batch in trainer.batches]
    assert [sorted(one + two) for one, two in zip(groups[::2], groups[1::2], strict=True)] == [[0, 1, 2, 3]] * 3
    assert trainer.progress == pytest.approx([number / 6 for number in range(6)])
    assert trainer.calls.count("log_probs reference_only=False") == 1, "old log-probabilities are those of the rollout"
    every = [each for batch in trainer.batches[:2] for each in batch]
    assert minibatches(every, 2, "0/1", epochs=3)[:2] == minibatches(every, 2, "0/1")
    orders = minibatches(every, 4, "0/1", epochs=3)
    assert len({str([part[0].group for part in orders[start : start + 4]]) for start in (0, 4, 8)}) > 1


def test_epochs_alone_need_old_log_probabilities(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    batch = {"prompts": 4, "group_size": 3, "epochs": 2}
    asyncio.run(make_loop(make_config(tmp_path / "run", steps=1, batch=batch), trainer=trainer).run())
    assert (trainer.updates, trainer.calls[1]) == (2, "log_probs reference_only=False")


def test_steps_with_nothing_to_train_on_end_the_run(tmp_path: Path) -> None:
    """After two good steps, every verdict is unknown; every second step is saved."""
    trainer = ScriptedTrainer()
    pool = ScriptedPool(lambda problem, rng: rng.choice(("right", "wrong")) if pool.version < 2 else "what")
    config = make_config(tmp_path / "run", steps=20, save_every=2)
    with pytest.raises(
        TrainingError, match=rf"{EMPTY_STEPS} consecutive steps had nothing.*4 few_known.*step-00000006"
    ) as caught:
        asyncio.run(make_loop(config, pool, trainer).run())
    assert "12 unknown" in str(caught.value)
    assert trainer.updates == 2
    lines = metrics_of(tmp_path / "run")
    assert [(line["groups"], line["dropped_unknown"]) for line in lines[2:]] == [(0, 12)] * 4


def test_prompts_longer_than_the_context_are_counted(tmp_path: Path) -> None:
    problems = [*PROBLEMS[:3], Problem("refused", "very long", "right")]
    config = make_config(tmp_path / "run", steps=2)
    asyncio.run(make_loop(config, problems=problems).run())
    assert [(line["dropped_refused"], line["groups"]) for line in metrics_of(tmp_path / "run")] == [(1, 3)] * 2
    config = make_config(tmp_path / "all")
    with pytest.raises(TrainingError, match=r"4 refused; the first refusal: problem refused: longer than the maximum"):
        asyncio.run(make_loop(config, problems=problems[3:]).run())


THIRD = Prompts(PROBLEMS, 0).take(3)[-1][0].id


def broken(problem: Problem, response: str, grading: Any) -> float:
    return math.nan if problem.id == THIRD else 0.0


def test_a_broken_reward_function_ends_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    rewards = {"functions": [{"path": "test_loop:broken"}]}
    trainer = ScriptedTrainer()
    config = make_config(tmp_path / "run", rewards=rewards, save_every=1, batch={"prompts": 1, "group_size": 3})
    with pytest.raises(TrainingError, match=rf"test_loop:broken: returned nan on problem {THIRD}"):
        asyncio.run(make_loop(replace_steps(config, 10), trainer=trainer).run())
    assert trainer.updates == 2
    assert trainer.calls[-1] == "save 2"


def replace_steps(config: RLConfig, steps: int) -> RLConfig:
    return config.model_copy(update={"steps": steps})


def test_an_alarm_saves_and_ends_the_run(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    monitor = {"alarms": {"accuracy": {"min": 0.99}}, "patience": 2, "samples": 1}
    config = make_config(tmp_path / "run", monitor=monitor)
    with pytest.raises(TrainingError, match=r"step 2: accuracy=.* below min=0.99 .*step-00000002"):
        asyncio.run(make_loop(config, trainer=trainer).run())
    assert trainer.calls[-1] == "save 2"
