"""Test RL over episodes with real engines and trainers: equal log-probabilities over turns with images, and a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def test_engine_and_trainer_agree_over_turns_with_images(tmp_path: Path) -> None:
    from benchmarks.agents_mismatch import measure_mismatch, write_policy

    found = measure_mismatch(write_policy(tmp_path), episodes=4, turns=8)
    assert found["images"] == 8
    assert found["image_effect"] > 0.01, "the log-probabilities depend on the images"
    assert found["max"] <= 1e-4


def test_a_run_in_a_gymnasium_environment(random_policy_folder: Path, tmp_path: Path) -> None:
    """The policy's weights are random, so it names a move now and then: a digit. Turns are continued after a replay."""
    pytest.importorskip("pygame", reason="needs mmprm[toy-text]")
    lake = {"question": "Reach the goal.", "arguments": {"desc": ["SF", "FG"]}}
    for name, question in (("train", "Reach the goal."), ("test", "Go to the goal.")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(lake | {"question": question}) + "\n")
    sets = {
        "output": tmp_path / "run",
        "problems.path": tmp_path / "train.jsonl",
        "held_out.path": tmp_path / "test.jsonl",
        "engine": {"model": str(random_policy_folder), "dtype": "float32", "kv_cache_gib": 0.1, "max_model_len": 1024},
        "engine.images_per_prompt": 3,
        "rollouts.engines": 1,
        "prompt.preset": "plain",
        "environment": {"path": "gymnasium:FrozenLake-v1", "pattern": "([0-3])", "max_turns": 3, "max_turn_tokens": 6},
        "environment.arguments": {"is_slippery": False},
        "credit.source": "tree",
        "rollouts.branching.continuations": 1,
        "batch.prompts": 1,
        "batch.group_size": 4,
        "trainer.optimization.precision": "fp32",
        "eval_samples": 2,
        "steps": 2,
        "ray_address": "local",
    }
    words = [
        word
        for key, value in sets.items()
        for word in ("--set", f"{key}={json.dumps(value) if isinstance(value, dict) else value}")
    ]
    done = subprocess.run([sys.executable, "-m", "mmprm", "rl", *words], capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("eval", 0), ("train", 1), ("train", 2), ("eval", 2)]
    for line in lines:
        assert 1 <= line["turns"] <= 3
        assert 0 <= line["invalid_actions"] <= 1
    trained = [line for line in lines if line["kind"] == "train"]
    assert all(line["mismatch_max"] < 1e-3 for line in trained)
    assert all(line["branches"] > 0 and line["branch_tokens"] > 0 for line in trained), "turns were continued"
