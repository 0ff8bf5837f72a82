"""The loop's own decisions on scripted engines and trainer; the resumed run once with a real trainer."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_rl import PROBLEMS, ScriptedPool, ScriptedTrainer, make_config, make_loop

from mmprm.config import build
from mmprm.errors import CheckpointError, ConfigError, EngineStoppedError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.types import Problem
from policy_rl.collector import Collected
from policy_rl.config import RLConfig
from policy_rl.loop import EMPTY_STEPS, minibatches
from policy_rl.metrics import console_line, merge_updates, metric_names, shares
from policy_rl.rollouts.curriculum import Prompts
from policy_rl.rollouts.evaluate import evaluate
from policy_rl.rollouts.pool import rollout_seed
from policy_rl.run_folder import Summary
from policy_rl.trainer.config import TrainerConfig, UpdateConfig
from policy_rl.trainer.trainer import Trainer
from policy_rl.types import Group
from policy_rl.weights.transfer import FileTransfer, Published

WEIGHED = {"loss": {"importance_cap": 2.0}}
LONE = {"batch": {"group_size": 1}, "advantage": {"estimator": "reinforce_pp"}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "filter": {"filter": {"low": 0.3, "high": 0.6, "rounds": 4}, "trainer": WEIGHED},
    "ahead": {"one_step_ahead": True, "trainer": WEIGHED},
    "updates": {"batch": {"prompts": 4, "group_size": 3, "updates": 2}},
    "filter with updates": {
        "filter": {"low": 0.3, "high": 0.6, "rounds": 1},
        "batch": {"prompts": 4, "group_size": 3, "updates": 2},
        "trainer": WEIGHED,
    },
}


def metrics_of(output: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without what the clock says."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "overhead")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines if line["kind"] == kind]


class StopsAt(ScriptedTrainer):
    """SIGTERM comes in the update of a step."""

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
    """A Trainer in this process, with the face of a TrainerGroup."""

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
    """Weights, optimizer and schedule too: two steps and two more are the same four, bit by bit."""
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
    assert {name for row in rows for name in row} - {"kind", "step"} <= names, "what alarms may watch"


def test_versions_and_seeds(tmp_path: Path) -> None:
    pool = ScriptedPool()
    asyncio.run(make_loop(make_config(tmp_path / "run"), pool).run())
    assert [version for *_, version, _ in pool.asked] == [v for v in range(6) for _ in range(4)]
    epochs = Counter()
    for problem, n, seed, version, most in pool.asked:
        assert (n, most) == (3, None)
        assert seed == rollout_seed(0, version, problem, epochs[problem])
        epochs[problem] += 1
    assert set(epochs.values()) == {2, 3}, "24 draws of 10 problems: none a third time before all had two"


def test_one_step_ahead_samples_beside_the_update(tmp_path: Path) -> None:
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
    """Before they wake, the trainer returns its cached memory; between waking and loading, the weights are sent."""
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


def test_progress_without_a_filter_is_that_of_the_updates(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    asyncio.run(make_loop(make_config(tmp_path / "run", **KINDS["updates"]), trainer=trainer).run())
    assert trainer.progress == pytest.approx([number / 12 for number in range(12)])


@pytest.mark.parametrize("changes", [{"steps": None, "episodes": 3}, {"steps": 8}])
def test_progress_with_a_filter_is_that_of_the_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    """By passes over the problems where these end it, by steps otherwise, and not by updates, of which it may make
    fewer: the last update stands near the end of the run."""
    trainer, pool = ScriptedTrainer(), ScriptedPool()
    config = make_config(tmp_path / "run", **(KINDS["filter"] | changes))
    summary = asyncio.run(make_loop(config, pool, trainer).run())
    assert trainer.progress[0] == 0.0
    assert trainer.progress == sorted(trainer.progress)
    if changes["steps"] is None:
        assert summary.steps < summary.total, "an upper bound"
        before_last = len(pool.asked) - sum(version == summary.steps - 1 for *_, version, _ in pool.asked)
        assert trainer.progress[-1] == pytest.approx(before_last / 30)
    else:
        assert trainer.progress[-1] == pytest.approx(7 / 8)


def test_a_run_whose_groups_wait_ends_with_its_passes_and_its_schedule(tmp_path: Path, capsys) -> None:
    """One round per step: half of what it asks for waits, so that there are more steps than problems / prompts."""
    trainer, pool = ScriptedTrainer(), ScriptedPool()
    config = make_config(tmp_path / "run", **(KINDS["filter with updates"] | {"steps": None, "episodes": 4}))
    summary = asyncio.run(make_loop(config, pool, trainer).run())
    assert (summary.finished, summary.total) == (True, 10)
    assert 40 <= len(pool.asked) < 44
    assert summary.steps > summary.total
    assert 0.8 < trainer.progress[-1] < 1
    assert f"finished 4 passes over the problems after step {summary.steps}" in capsys.readouterr().out


def test_updates_keep_their_size_under_a_filter(tmp_path: Path, capsys) -> None:
    """Two updates of two groups each, of what one round leaves: never an update of one group, nor of three."""
    trainer = ScriptedTrainer()
    config = make_config(tmp_path / "run", **(KINDS["filter with updates"] | {"steps": 12}))
    asyncio.run(make_loop(config, trainer=trainer).run())
    assert [len({each.group for each in batch}) for batch in trainer.batches] == [2] * trainer.updates
    lines = metrics_of(tmp_path / "run")
    assert {line["updates"] for line in lines} >= {0, 1}, "fewer of them"
    assert sum(line["groups"] for line in lines) == 2 * trainer.updates
    assert lines[-1]["carried"] in (0, 1)
    left = "1 groups are left over, fewer than the 2 of an update" in capsys.readouterr().out
    assert left == (lines[-1]["carried"] == 1)


def test_steps_that_wait_for_enough_groups_do_not_end_the_run(tmp_path: Path) -> None:
    """One problem of ten passes the filter, so that an update of two groups comes after two passes over all."""
    middling = PROBLEMS[0].id
    pool = ScriptedPool(lambda problem, rng: rng.choice(("right", "wrong")) if problem.id == middling else "wrong")
    trainer = ScriptedTrainer()
    batch = {"prompts": 2, "group_size": 12, "updates": 1}
    changes = {"filter": {"low": 0.1, "high": 0.9, "rounds": 2}, "trainer": WEIGHED, "batch": batch, "steps": 12}
    assert asyncio.run(make_loop(make_config(tmp_path / "run", **changes), pool, trainer).run()).finished
    lines = metrics_of(tmp_path / "run")
    assert trainer.updates == sum(line["updates"] for line in lines) >= 2
    assert [len({each.group for each in batch}) for batch in trainer.batches] == [2] * trainer.updates
    assert 1 in {line["carried"] for line in lines}


def test_a_warmup_of_the_critic_as_long_as_the_run_is_refused(tmp_path: Path) -> None:
    critic = {"advantage": {"estimator": "gae"}, "batch": {"prompts": 4, "updates": 2}}
    with pytest.raises(ConfigError, match="warmup_updates=10 must be less than the 10 updates of this run"):
        make_config(tmp_path, steps=5, **critic).check_warmup(100)
    make_config(tmp_path, steps=6, **critic).check_warmup(100)
    make_config(tmp_path, steps=1).check_warmup(100)


def test_minibatches_are_whole_groups(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    asyncio.run(make_loop(make_config(tmp_path / "run", steps=1, **KINDS["updates"]), trainer=trainer).run())
    groups = [{each.group for each in batch} for batch in trainer.batches]
    assert [len(each) for each in groups] == [2, 2]
    assert groups[0] | groups[1] == {0, 1, 2, 3}
    every = [each for batch in trainer.batches for each in batch]
    assert [len(share) for share in minibatches(every, 3, "0/1")] in ([6, 3, 3], [3, 6, 3], [3, 3, 6])
    assert minibatches(every, 9, "0/1") != minibatches(every, 9, "0/2"), "another order at another step"
    assert len(minibatches(every, 9, "0/1")) == 4, "no more updates than groups"


def test_evaluation_before_between_and_after(tmp_path: Path) -> None:
    held_out = [Problem("h1", "?", "right"), Problem("h2", "?", "right"), Problem("refused", "?", "right")]
    config = make_config(tmp_path / "run", eval_every=4)
    pool = ScriptedPool(lambda problem, rng: "right" if problem.id == "h1" else rng.choice(("right", "wrong")))
    summary = asyncio.run(make_loop(config, pool, held_out=held_out).run())
    assert [line["step"] for line in metrics_of(tmp_path / "run", "eval")] == [0, 4, 6]
    assert summary.before is not None
    assert summary.before.failed == 1
    seeds = {seed for problem, _, seed, _, _ in pool.asked if problem == "h2"}
    assert len(seeds) == 1, "the same draws each time"


async def test_pass_at_1_by_hand() -> None:
    """h1: right, right; h2: one unknown, so its one known verdict counts alone."""
    texts = iter(["right", "wrong", "what", "wrong"])
    pool = ScriptedPool(lambda problem, rng: next(texts))
    pool.sample = _in_turn(pool)
    from scripted_rl import ScriptedGrader

    found = await evaluate(pool, ScriptedGrader(), PROBLEMS[:2], 2, 0)
    assert found.pass_at_1.value == pytest.approx((0.5 + 0.0) / 2)
    assert (found.problems, found.failed, found.unknown) == (2, 0, 1)
    aborting = ScriptedPool(lambda problem, rng: "wrong" if problem is PROBLEMS[1] else "right")
    aborting.finish_reason = "abort"
    with pytest.raises(TrainingError, match="no held-out problem has a known verdict"):
        await evaluate(aborting, ScriptedGrader(), PROBLEMS[:2], 2, 0)
    other = [Problem("label", "?", "what")]
    labels = await evaluate(ScriptedPool(lambda *_: "what"), ScriptedGrader(), other, 2, 0, accuracy="exact_label")
    assert (labels.pass_at_1.value, labels.unknown) == (1.0, 0)
    nothing = ScriptedPool(lambda problem, rng: "what")
    with pytest.raises(TrainingError, match="no held-out problem has a known verdict"):
        await evaluate(nothing, ScriptedGrader(), PROBLEMS[:2], 2, 0)


def _in_turn(pool: ScriptedPool):
    sample, lock = pool.sample, asyncio.Lock()

    async def one_by_one(*arguments: Any, **settings: Any) -> Group:
        async with lock:
            return await sample(*arguments, **settings)

    return one_by_one


def test_nothing_to_train_on_ends_the_run_with_a_word(tmp_path: Path) -> None:
    """Two good steps, then every verdict unknown; each second step is saved."""
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
    monitor = {"alarms": {"accuracy": {"least": 0.99}}, "patience": 2, "samples": 1}
    config = make_config(tmp_path / "run", monitor=monitor)
    with pytest.raises(TrainingError, match=r"step 2: accuracy=.* below least=0.99 .*step-00000002"):
        asyncio.run(make_loop(config, trainer=trainer).run())
    assert trainer.calls[-1] == "save 2"


def test_another_configuration_does_not_go_on(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", save_every=2)
    asyncio.run(make_loop(config).run())
    other = make_config(tmp_path / "run", save_every=2, batch={"prompts": 4, "group_size": 2})
    with pytest.raises(CheckpointError, match="belongs to a run with different batch"):
        asyncio.run(make_loop(other).run())
    with pytest.raises(CheckpointError, match="belongs to a run with different problems"):
        asyncio.run(make_loop(config, problems=PROBLEMS[1:]).run())
    same = make_config(tmp_path / "run", save_every=3, eval_every=1)
    summary = asyncio.run(_ended(same))
    assert summary.steps == 6


async def _ended(config: RLConfig) -> Summary:
    """A run that is already at its end trains no more."""
    trainer = ScriptedTrainer()
    trainer.save_model = lambda folder: None
    summary = await make_loop(config, trainer=trainer).run()
    assert "update" not in trainer.calls
    return summary


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": {"group_size": 1}}, r"batch.group_size=1 must be at least 2: rloo takes the other samples"),
        ({"schedule": [{"steps": 1, "group_size": 1, "max_tokens": 9}]}, r"schedule.0.group_size=1"),
        ({"rewards": {"accuracy_weight": 0}}, r"rewards.accuracy_weight=0 leaves nothing to reward"),
        (
            {"schedule": [{"steps": 1, "group_size": 2, "max_tokens": 4096}], "held_out": {"path": "x"}},
            r"sampling.max_tokens=\d+ limits the answers to held_out problems .*, 4096; set it to 4096",
        ),
        ({"batch": {"prompts": 4, "updates": 5}}, r"batch.updates=5 must not exceed batch.prompts=4"),
        ({"filter": {}}, r"set trainer.loss.importance_cap=2"),
        (
            {"filter": {}, "trainer": WEIGHED, "batch": {"prompts": 5, "updates": 2}},
            r"batch.prompts=5 must be a multiple of batch.updates=2 with a filter",
        ),
        ({"one_step_ahead": True, "trainer": WEIGHED, "rollouts": {"colocated": True}}, r"rollouts.colocated=false"),
        ({"credit": {}}, r"set process.scorer.prm"),
        ({"process": {"scorer": {"prm": "x"}}, "advantage": {"estimator": "gae"}}, r"use credit.mode=step_gae"),
        ({"process": {"scorer": {"prm": "x"}}, "credit": {"mode": "step_gae"}}, r"needs a critic"),
        ({"process": {"scorer": {"prm": "x"}}, **LONE}, r"batch.group_size=1 must be at least 2: credit.mode=soft_min"),
        ({"trainer": {"critic": {"learning_rate": 1e-5}}}, r"advantage.estimator=rloo does not have"),
        ({"engine": {"model": "m", "servers": {"urls": ["http://localhost:1"]}}}, r"cannot get new weights"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(tmp_path, **changes)


def test_steps_of_a_run(tmp_path: Path) -> None:
    values = {"output": "o", "problems": {"path": "p"}, "engine": {"model": "m"}, "batch": {"prompts": 4}}
    assert build(RLConfig, values | {"episodes": 3}).total_steps(10) == 7
    assert build(RLConfig, values | {"steps": 5, "episodes": 3}).total_steps(10) == 5
    assert build(RLConfig, values).total_steps(3) == 1


def test_phases_add_up_to_the_step() -> None:
    seconds = Counter({"wait": 5.5, "old": 1.0, "update_call": 2.5, "update": 2.0, "sync": 0.5})
    collected = Collected(tokens=800, generating=4.0, scoring=1.0)
    found = shares(seconds, collected, 10.0, ahead=False)
    phases = {name: found[f"seconds_{name}"] for name in ("generate", "score", "old", "update", "sync", "other")}
    assert phases == {"generate": 4.0, "score": 1.0, "old": 1.0, "update": 2.0, "sync": 0.5, "other": 1.5}
    assert found["overhead"] == pytest.approx(0.2), "sync and the rest"
    assert found["tokens_per_second"] == 200
    assert shares(seconds, collected, 10.0, ahead=True)["seconds_generate"] == 5.5


def test_figures_of_several_updates() -> None:
    updates = [
        {"loss": 1.0, "entropy": 1.0, "tokens": 10.0, "log_ratio_min": -1.0, "log_ratio_max": 0.5, "seconds": 1.0},
        {"loss": 3.0, "entropy": 2.0, "tokens": 30.0, "log_ratio_min": -0.2, "log_ratio_max": 2.0, "seconds": 1.0},
    ]
    expected = {"updates": 2, "loss": 2.0, "tokens": 40.0, "log_ratio_min": -1.0, "log_ratio_max": 2.0}
    expected["entropy"] = (1 * 10 + 2 * 30) / 40  # what is one over tokens
    assert merge_updates(updates) == expected


def test_the_line_of_a_step(tmp_path: Path, capsys) -> None:
    pool = ScriptedPool(lambda problem, rng: rng.choice(("right", "wrong", "what")))
    asyncio.run(make_loop(make_config(tmp_path / "run", steps=1), pool).run())
    line = capsys.readouterr().out.splitlines()[0]
    metrics = metrics_of(tmp_path / "run")[0]
    assert line.startswith(f"step 1/1  reward {metrics['reward']:.4g}  acc ")
    assert f"{metrics['dropped_unknown']:g} unknown" in line
    assert "generate" in line
    phases = (f"seconds_{name}" for name in ("generate", "score", "old", "update", "sync", "other"))
    timed = {"seconds": 1.0} | dict.fromkeys(phases, 0.0)
    assert console_line(1, 2, timed).startswith("step 1/2")
    timed |= {"reward": 1.25, "reward_format": 0.5, "reward_length": 0.0, "reward_my:f": -2.0, "prm_score": 0.75}
    timed |= {"kl_old": 0.125, "log_ratio_min": -0.5, "log_ratio_max": 0.375}
    found = console_line(1, 2, timed)
    assert "reward 1.25 (format 0.5, my:f -2, process 0.75)  kl-old 0.125  log-ratio min -0.5  max 0.375" in found
    assert "process" not in console_line(1, 2, timed | {"prm_score": math.nan})
