"""Test stages in one file: each starts from the previous stage's policy, and finished ones are skipped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmprm.cli.main import main
from mmprm.errors import ConfigError, TrainingError
from policy_rl.stages import Command, command, read_stages, run_stages, write_stage_files

SFT = {"model": "tiny", "data": {"path": "solutions.jsonl"}}
RL = {"problems": {"path": "train.jsonl"}, "batch": {"prompts": 4, "group_size": 2}, "steps": 3}


def written(folder: Path, *stages: Any, **more: Any) -> Path:
    file = folder / "stages.yaml"
    file.write_text(yaml.safe_dump({"output": str(folder / "run"), "stages": list(stages), **more}))
    return file


class Launcher:
    """Replaces the commands: a stage leaves a policy unless told otherwise. `seen` holds (kind, values)."""

    def __init__(self, *outcomes: tuple[int, bool]) -> None:
        self.outcomes = list(outcomes)
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, command: Command) -> int:
        kind, file = command[-3], Path(command[-1])
        self.seen.append((kind, yaml.safe_load(file.read_text())))
        code, leaves = self.outcomes.pop(0) if self.outcomes else (0, True)
        if leaves:
            (file.parent / "policy").mkdir()
        return code


def test_each_stage_begins_with_the_policy_before_it(tmp_path: Path) -> None:
    launch = Launcher()
    output = tmp_path / "run"
    policy = run_stages(written(tmp_path, {"sft": SFT}, {"rl": RL}, {"rl": {**RL, "steps": 5}}), ["3.seed=7"], launch)
    assert policy == output / "stage-3-rl" / "policy"
    assert [kind for kind, _ in launch.seen] == ["sft", "rl", "rl"]
    first, second, third = (values for _, values in launch.seen)
    assert first == {**SFT, "output": str(output / "stage-1-sft")}
    assert second["engine"] == {"model": str(output / "stage-1-sft" / "policy")}
    assert third["engine"] == {"model": str(output / "stage-2-rl" / "policy")}
    assert (second["steps"], third["steps"], third["seed"]) == (3, 5, 7)
    assert "seed" not in second


def test_finished_stages_are_skipped_and_a_stopped_one_resumes(tmp_path: Path) -> None:
    file = written(tmp_path, {"sft": SFT}, {"rl": RL})
    with pytest.raises(TrainingError, match=r"stage 2 \(rl\).*exit code 2"):
        run_stages(file, (), Launcher((0, True), (2, False)))
    stopped = Launcher((0, False))
    assert run_stages(file, (), stopped) is None
    assert [kind for kind, _ in stopped.seen] == ["rl"]
    assert run_stages(file, (), Launcher()) == tmp_path / "run" / "stage-2-rl" / "policy"
    nothing = Launcher()
    run_stages(file, (), nothing)
    assert nothing.seen == []


def test_a_finished_stage_with_other_keys_is_not_taken_for_this_one(tmp_path: Path) -> None:
    file = written(tmp_path, {"sft": SFT}, {"rl": RL})
    run_stages(file, (), Launcher())
    with pytest.raises(ConfigError, match=r"stage 1 \(sft\): was finished with another max_length"):
        run_stages(file, ["1.max_length=77"], Launcher())


def test_all_stages_are_checked_before_the_first_one_runs(tmp_path: Path) -> None:
    launch = Launcher()
    bad = {"rl": {**RL, "batch": {"group_size": 1}}}
    function, alarm = {"functions": [{"path": "no_such:f"}]}, {"alarms": {"prm_acu": {"min": 0.6}}}
    cases: list[tuple[list[Any], list[str], str]] = [
        ([{"sft": SFT}, bad], [], "stage 2.*group_size=1"),
        ([{"sft": SFT}, {"rl": {**RL, "engine": {"model": "x"}}}], [], "stage 2: leave engine.model out"),
        ([{"sft": {**SFT, "output": "x"}}], [], "stage 1: leave output out"),
        ([{"rl": RL}], [], "stage 1: engine is required"),
        ([{"sft": SFT}, {"rl": {**RL, "sampling": {"temperature": 0}}}], [], "stage 2: sampling.temperature=0 must"),
        ([{"sft": SFT}, {"rl": {**RL, "rewards": function}}], [], "stage 2: functions.path='no_such:f'"),
        (
            [{"sft": SFT}, {"rl": {**RL, "monitor": alarm}}],
            [],
            "stage 2: monitor.alarms.prm_acu: this run does not log",
        ),
        ([{"dpo": {}}], [], "must be one of sft, rl"),
        ([], [], "must contain output and stages"),
        ([{"sft": SFT}], ["2.steps=1"], "has no stage 2; use 1 to 1"),
        ([{"sft": SFT}], ["1.max_lenght=1"], "did you mean max_length"),
    ]
    for stages, sets, words in cases:
        with pytest.raises(ConfigError, match=words):
            run_stages(written(tmp_path, *stages), sets, launch)
    assert launch.seen == []


def test_overriding_one_stage_leaves_another_that_shares_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text(
        "output: o\nstages:\n"
        "  - rl: &shared {engine: {model: m}, problems: {path: p}, trainer: &trainer {ranks: 2}}\n"
        "  - rl: {problems: {path: p}, trainer: *trainer}\n"
    )
    first, second = read_stages(file, ["1.trainer.ranks=4", "output=elsewhere"])
    assert (first.config.trainer.ranks, second.config.trainer.ranks) == (4, 2)
    assert second.folder == Path("elsewhere/stage-2-rl")


def test_sft_uses_one_rank_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    file = Path("f.yaml")
    plain = [sys.executable, "-m", "mmprm", "sft", "--config", "f.yaml"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert command("sft", file) == plain
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert "--nproc_per_node" in command("sft", file)
    assert "8" in command("sft", file)
    assert "--nproc_per_node" not in command("rl", file)


def test_the_command_itself_runs_a_stage_and_reports_its_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stage is a real process that fails because its data is missing."""
    missing = {**SFT, "model": str(tmp_path), "data": {"path": str(tmp_path / "missing.jsonl")}}
    assert main(["stages", "--config", str(written(tmp_path, {"sft": missing}))]) == 2
    error = capfd.readouterr().err
    assert "has no config.json" in error
    assert "stage 1 (sft)" in error
    assert "exit code 2" in error


@pytest.mark.parametrize(("code", "stopped"), [(0, False), (143, False), (130, True)])
def test_a_stage_that_was_stopped(tmp_path: Path, code: int, stopped: bool) -> None:
    file = written(tmp_path, {"sft": SFT})
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            run_stages(file, launch=lambda command: code)
    else:
        assert run_stages(file, launch=lambda command: code) is None


def test_stages_under_torchrun_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank would run all stages."""
    monkeypatch.setenv("WORLD_SIZE", "16")
    launch = Launcher()
    with pytest.raises(ConfigError, match=r"must not run under torchrun; .*--files-only.* mmprm sft --config OUTPUT"):
        run_stages(written(tmp_path, {"sft": SFT}), (), launch)
    assert launch.seen == []


def test_a_stage_that_was_run_by_hand_from_its_file_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, launch = written(tmp_path, {"sft": SFT}, {"rl": RL}), Launcher()
    main(["stages", "--config", str(file), "--files-only"])
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "run" / name / "stage.yaml") for name in ("stage-1-sft", "stage-2-rl")
    ]
    (tmp_path / "run/stage-1-sft/policy").mkdir()  # the state after torchrun … mmprm sft --config stage.yaml
    assert write_stage_files(file) == [tmp_path / "run/stage-2-rl/stage.yaml"]
    run_stages(file, (), launch)
    assert [kind for kind, _ in launch.seen] == ["rl"]
