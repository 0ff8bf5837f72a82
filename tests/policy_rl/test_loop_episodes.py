"""Test the RL loop with an environment: what is trained on, metrics, evaluation, and settings that do not fit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from corridor import CorridorPool
from scripted_rl import ScriptedTrainer, make_config, make_loop, metrics_of

from mmprm.errors import ConfigError
from mmprm.types import Problem
from policy_rl.config import RLConfig
from policy_rl.rewards.cutter import StepCutter

EPISODES = {
    "environment": {"path": "corridor:Corridor", "max_turns": 4},
    "prompt": {"preset": "plain"},
    "batch": {"prompts": 2, "group_size": 6},
    "rewards": {"environment_weight": 1.0},
    "credit": {"source": "gigpo", "gamma": 0.9},
    "steps": 2,
}
LEVELS = [Problem(f"p{number}", "Go right.", "") for number in range(4)]


def run(
    config: RLConfig, problems: list[Problem] = LEVELS, **more: Any
) -> tuple[ScriptedTrainer, list[dict[str, Any]]]:
    trainer = ScriptedTrainer()
    pool = CorridorPool(environment=config.environment)
    asyncio.run(make_loop(config, pool, trainer, problems, **more).run())
    return trainer, metrics_of(Path(config.output))


def test_episodes_are_trained_on_with_their_own_tokens(tmp_path: Path) -> None:
    trainer, metrics = run(make_config(tmp_path, **EPISODES))
    samples = [sample for batch in trainer.batches for sample in batch]
    assert len(samples) == 24
    for sample in samples:
        own = sample.token_ids[sample.counted]
        assert set(own.tolist()) <= {1, 2, 3, 8}
        assert set(sample.token_ids[~sample.counted].tolist()) <= {100, 101}
        assert not sample.advantages[~sample.counted].any()
    for line in metrics:
        assert 2 <= line["turns"] <= 4
        assert 0 < line["invalid_actions"] < 1
        assert line["reward"] == pytest.approx(line["accuracy"] + line["episode_return"])
        assert line["episode_return"] == pytest.approx(line["reward_environment"])


def test_each_turn_is_a_row_if_old_images_are_left_out(tmp_path: Path) -> None:
    latest = {"environment": {**EPISODES["environment"], "images": 1}}
    kl = {"loss": {"kl": {"coefficient": 0.1}}}
    trainer, _ = run(make_config(tmp_path, **(EPISODES | latest), trainer=kl))
    samples = [sample for batch in trainer.batches for sample in batch]
    assert {len(sample.rows) for sample in samples} == {1}
    assert {len(sample.token_ids) for sample in samples} == {2}
    assert all(sample.ref.tolist() == [-1, -1] for sample in samples), "the reference model reads each row"


TREE = EPISODES | {"credit": {"source": "tree"}, "rollouts": {"branching": {"continuations": 2}}, "steps": 1}


@pytest.mark.parametrize("images", ["all", 1])
def test_episodes_branch_after_turns(tmp_path: Path, images: int | str) -> None:
    changes = {"environment": {**EPISODES["environment"], "images": images, "max_turn_tokens": 2}}
    config = make_config(tmp_path, **(TREE | changes))
    pool, trainer = CorridorPool(environment=config.environment), ScriptedTrainer()
    asyncio.run(make_loop(config, pool, trainer, LEVELS, cutter=StepCutter(None, "blank_lines", "")).run())
    (metrics,) = metrics_of(tmp_path)
    assert metrics["branches"] == len(pool.branches) > 2
    # Turns have two tokens; with all images, one more of the observation lies between them.
    turns = [(len(ids) + 1) // 3 if images == "all" else len(ids) // 2 for *_, ids in pool.branches]
    assert {1, 2} <= set(turns)
    assert [each[:2] for each in pool.branches] == [(2, 2 * (4 - turn)) for turn in turns]
    (batch,) = trainer.batches
    counted = sum(int(sample.counted.sum()) for sample in batch)
    assert counted == metrics["response_tokens"] * 12 + metrics["branch_tokens"], "each token is trained on once"


def test_broken_episodes_are_dropped_with_their_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [Problem("broken", "Go right.", "", extra={"breaks": True}), LEVELS[0]]
    trainer, metrics = run(make_config(tmp_path, **EPISODES), broken)
    assert {sample.problem.id for batch in trainer.batches for sample in batch} == {"p0"}
    assert [line["dropped_aborted"] for line in metrics] == [6, 6]
    reason = "an episode was dropped, and so are others with this reason: environment failed: RuntimeError: the floor"
    assert capsys.readouterr().err.count(reason) == 1


def test_a_resumed_run_with_waiting_episodes_equals_an_undisturbed_one(tmp_path: Path) -> None:
    weighed = {"one_step_ahead": True, "trainer": {"loss": {"importance_cap": 2.0}}, "save_every": 1}
    config = make_config(tmp_path / "a", **(EPISODES | weighed))
    whole, metrics = run(config)
    part = make_config(tmp_path / "b", **(EPISODES | weighed))
    run(part)
    # Remove the last checkpoint, as if the run had been killed before it.
    for path in sorted((tmp_path / "b/checkpoints/step-00000002").iterdir()):
        path.unlink()
    (tmp_path / "b/checkpoints/step-00000002").rmdir()
    stored = json.loads((tmp_path / "b/checkpoints/step-00000001/extra.json").read_text())
    assert all(collected["groups"] for collected in stored["pending"].values()), "episodes were waiting"
    assert stored["pending"]
    again, resumed = run(part)
    assert (again.weights, resumed) == (whole.weights, metrics)


def test_held_out_episodes_are_measured(tmp_path: Path) -> None:
    run(make_config(tmp_path, **EPISODES), held_out=[Problem("h", "Go right.", "")])
    first, last = metrics_of(tmp_path, "eval")
    assert (first["problems"], first["unknown"]) == (1, 0)
    assert 2 <= first["turns"] <= 4
    assert first["pass_at_1"] == last["pass_at_1"], "evaluations use the same seeds"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": None}, "credit.source=gigpo needs the turns of episodes"),
        ({"environment": None, "credit": None}, "rewards.environment_weight=1 needs an environment"),
        ({"prompt": {"preset": "steps"}}, "prompt.preset=steps must be plain"),
        ({"rewards": {"format": "think"}}, "rewards.format cannot be combined with an environment"),
        ({"schedule": [{"steps": 2, "group_size": 6, "max_tokens": 8}]}, "schedule cannot be combined"),
        ({"advantage": {"estimator": "gae"}}, "advantage.estimator=gae must be rloo or grpo or dr_grpo"),
        ({"credit": {"source": "gigpo", "mode": "scalar"}}, "mode=scalar has no effect with source=gigpo"),
        ({"credit": {"source": "environment", "baseline": "prime_steps"}}, "use step_index or none"),
        (
            {"credit": {"source": "tree"}, "rollouts": {"branching": {"store": True}}},
            "rollouts.branching.store cannot be combined with an environment",
        ),
        ({"process": {"scorer": {"prm": "p"}}}, "process cannot be combined with credit.source=gigpo"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(tmp_path, **(EPISODES | changes))
