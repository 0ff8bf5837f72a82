"""Test which run configurations are rejected, and the number of steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_rl import (
    WEIGHED,
    make_config,
)

from mmprm.config import build
from mmprm.errors import ConfigError
from policy_rl.config import RLConfig

LONE = {"batch": {"group_size": 1}, "advantage": {"estimator": "reinforce_pp"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": {"group_size": 1}}, r"batch.group_size=1 must be at least 2: rloo uses the other samples"),
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
        (
            {"process": {"scorer": {"backend": "judge", "judge": {"engine": {"model": "m"}}}}},
            r"scorer.backend=judge must run on servers.*set scorer.judge.engine.servers.urls",
        ),
        ({"process": {"scorer": {"prm": "x"}}, "advantage": {"estimator": "gae"}}, r"use credit.mode=step_gae"),
        ({"process": {"scorer": {"prm": "x"}}, "credit": {"mode": "step_gae"}}, r"needs a critic"),
        (
            {"process": {"scorer": {"prm": "x"}}, "credit": {"mode": "value"}, "advantage": {"estimator": "grpo"}},
            r"advantage.estimator=grpo cannot be combined with credit.mode=value",
        ),
        (
            {
                "process": {"scorer": {"prm": "x"}},
                "credit": {"mode": "value"},
                "rewards": {"accuracy_weight": 0, "format": "think"},
            },
            r"credit.mode=value needs the accuracy",
        ),
        ({"advantage": {"lam": 0.9}}, r"advantage.lam=0.9 has no effect with advantage.estimator=rloo"),
        ({"process": {"scorer": {"prm": "x"}}, **LONE}, r"batch.group_size=1 must be at least 2: credit.mode=soft_min"),
        ({"trainer": {"critic": {"learning_rate": 1e-5}}}, r"advantage.estimator=rloo does not have"),
        ({"engine": {"model": "m", "servers": {"urls": ["http://localhost:1"]}}}, r"engine.servers does not exist"),
        ({"sampling": {"top_p": 0.9}}, r"sampling.top_p does not exist"),
    ],
)
def test_invalid_configurations_are_rejected(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(tmp_path, **changes)


def test_steps_of_a_run(tmp_path: Path) -> None:
    values = {"output": "o", "problems": {"path": "p"}, "engine": {"model": "m"}, "batch": {"prompts": 4}}
    assert build(RLConfig, values | {"episodes": 3}).total_steps(10) == 7
    assert build(RLConfig, values | {"steps": 5, "episodes": 3}).total_steps(10) == 5
    assert build(RLConfig, values).total_steps(3) == 1


def test_a_critic_warmup_as_long_as_the_run_is_rejected(tmp_path: Path) -> None:
    critic = {"advantage": {"estimator": "gae"}, "batch": {"prompts": 4, "updates": 2}}
    with pytest.raises(ConfigError, match="warmup_updates=10 must be less than the 10 updates of this run"):
        make_config(tmp_path, steps=5, **critic).check_warmup(100)
    make_config(tmp_path, steps=6, **critic).check_warmup(100)
    make_config(tmp_path, steps=1).check_warmup(100)


def test_a_judge_is_part_of_the_resume_key(tmp_path: Path) -> None:
    def key(**judge: Any) -> dict[str, Any]:
        engine = {"model": "m", "servers": {"urls": ["http://localhost:1"]}}
        scorer = {"backend": "judge", "judge": {"engine": engine} | judge}
        return make_config(tmp_path, process={"scorer": scorer}).resume_key()

    assert key(seed=1) != key()
    assert key(cache="elsewhere.sqlite") == key()
    assert "judge" not in make_config(tmp_path, process={"scorer": {"prm": "x"}}).resume_key()["process"]["scorer"]
