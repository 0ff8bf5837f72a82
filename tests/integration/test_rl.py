"""Test `mmprm rl` with real engines, trainer and PRM: it trains, stops on SIGTERM with exit code 0, and resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli.main import main
from mmprm.problems import write_problems
from mmprm.tiny.world import make_problems

pytestmark = pytest.mark.integration

CONFIG = Path(__file__).parents[2] / "configs/rl/tiny.yaml"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> list[str]:
    """Return overrides for small steps of the shipped configuration.

    One problem's prompt exceeds the context, and one gold answer cannot be parsed.
    """
    folder = tmp_path_factory.mktemp("problems")
    train = [tiny.problem for tiny in make_problems(14, seed=0, split="train")]
    train.append(replace(make_problems(15, seed=0, split="train")[-1].problem, answer="\\frac{"))
    write_problems(folder / "train.jsonl", train)
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "long", "question": "red + " * 1500 + "red = ?", "answer": "1"}) + "\n")
    write_problems(folder / "test.jsonl", [tiny.problem for tiny in make_problems(8, seed=0, split="test")])
    values: dict[str, Any] = {
        "problems.path": folder / "train.jsonl",
        "held_out.path": folder / "test.jsonl",
        "engine.model": policy_folder,
        "engine.kv_cache_gib": 0.1,
        "rollouts.engines": 1,
        "batch.prompts": 4,
        "batch.group_size": 4,
        "batch.updates": 2,
        "trainer.loss.importance_cap": 2,
        "one_step_ahead": True,
        "eval_samples": 2,
        "eval_every": 0,
        "save_every": 100,
        "steps": 8,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmprm", "rl", "--config", str(CONFIG), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines_of(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    whole = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in whole if line.endswith("\n")]


@pytest.mark.timeout(1200)
def test_a_run_stops_on_sigterm_and_resumes(tmp_path: Path, sets: list[str]) -> None:
    output = tmp_path / "run"
    process = start(*sets, "--set", f"output={output}")
    end = time.monotonic() + 400
    while not any(line["kind"] == "train" for line in lines_of(output)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "no step in 400 s"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert "SIGTERM; saved after step" in said
    assert not (output / "policy").exists()
    first = [line for line in lines_of(output) if line["kind"] == "train"]
    assert 1 <= len(first) < 8

    process = start(*sets, "--set", f"output={output}")
    said = process.communicate(timeout=500)[0]
    assert process.returncode == 0, said
    assert "the policy after step 8" in said
    train = [line for line in lines_of(output) if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 9))
    assert train[: len(first)] == first
    assert [line["step"] for line in lines_of(output) if line["kind"] == "eval"] == [0, 8]
    # 32 prompts from 16 problems: each one twice.
    assert sum(line["dropped_refused"] for line in train) == 2
    assert sum(line["dropped_unknown"] for line in train) >= 4, "of 8; a response without an answer is incorrect"
    for line in train:
        assert line["mismatch_absolute"] < 0.05, "the engine has the trainer's weights"
        fewer = line["dropped_refused"] + line["dropped_unknown"] > 0  # 4 groups make two updates of two, 3 make one
        assert line["updates"] in ((1, 2) if fewer else (2,))
        assert 0 < line["overhead"] < 1
    config = json.loads((output / "policy/config.json").read_text())
    assert config["model_type"] == "qwen2_5_vl"


@pytest.mark.parametrize(
    ("incorrect", "words"),
    [("batch.group_size=1", "uses the other samples"), ("sampling.top_p=0.9", "sampling.top_p does not exist")],
)
def test_user_errors_end_with_exit_code_2(
    incorrect: str, words: str, tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rl", "--config", str(CONFIG), *sets, "--set", f"output={tmp_path}", "--set", incorrect]) == 2
    assert words in capsys.readouterr().err
