"""Test the metrics of a step and its line on the console."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path

import pytest
from scripted_rl import (
    ScriptedPool,
    make_config,
    make_loop,
    metrics_of,
)

from policy_rl.metrics import console_line, merge_updates, shares
from policy_rl.rollouts.collected import Collected


def test_phases_add_up_to_the_step() -> None:
    seconds = Counter({"wait": 5.5, "old": 1.0, "update_call": 2.5, "update": 2.0, "sync": 0.5})
    collected = Collected(tokens=800, generating=4.0, scoring=1.0)
    found = shares(seconds, collected, 10.0, ahead=False)
    phases = {name: found[f"seconds_{name}"] for name in ("generate", "score", "old", "update", "sync", "other")}
    assert phases == {"generate": 4.0, "score": 1.0, "old": 1.0, "update": 2.0, "sync": 0.5, "other": 1.5}
    assert found["overhead"] == pytest.approx(0.2), "sync and the remaining time"
    assert found["tokens_per_second"] == 200
    assert shares(seconds, collected, 10.0, ahead=True)["seconds_generate"] == 5.5


def test_metrics_of_several_updates() -> None:
    updates = [
        {"loss": 1.0, "entropy": 1.0, "tokens": 10.0, "log_ratio_min": -1.0, "log_ratio_max": 0.5, "seconds": 1.0},
        {"loss": 3.0, "entropy": 2.0, "tokens": 30.0, "log_ratio_min": -0.2, "log_ratio_max": 2.0, "seconds": 1.0},
    ]
    expected = {"updates": 2, "loss": 2.0, "tokens": 40.0, "log_ratio_min": -1.0, "log_ratio_max": 2.0}
    expected["entropy"] = (1 * 10 + 2 * 30) / 40  # metrics that sum to one over tokens
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
