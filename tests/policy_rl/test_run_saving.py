"""Test what a run saves, what a repeated command does, and what is rejected before anything is loaded."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from scripted_rl import PROBLEMS, WEIGHED, ScriptedPool, ScriptedTrainer, make_config, make_loop, metrics_of

from mmprm.errors import CheckpointError, ConfigError, TrainingError
from mmprm.prm.trained import Trained
from mmprm.problems import write_problems
from mmprm.types import Problem
from policy_rl import run_folder
from policy_rl.collector import problems_fingerprint
from policy_rl.config import RLConfig
from policy_rl.loop import Loop
from policy_rl.run import train_policy
from policy_rl.run_folder import check_same, lacks_evaluation, resume_key_of, summary_without_training

HELD_OUT = [Problem("h1", "?", "right"), Problem("h2", "?", "right")]
STRICT = {"filter": {"low": 0.5, "high": 0.7, "rounds": 2}, "trainer": WEIGHED, "steps": None, "save_every": 1}


def saves(trainer: ScriptedTrainer) -> list[str]:
    return [call for call in trainer.calls if call.startswith("save ")]


def test_checkpoints_by_default_and_after_the_last_step_always(tmp_path: Path) -> None:
    for changes, expected in (({"steps": 12}, ["save 10", "save 12"]), ({"save_every": 0}, ["save 6"])):
        trainer = ScriptedTrainer()
        asyncio.run(make_loop(make_config(tmp_path / expected[-1], **changes), trainer=trainer).run())
        assert saves(trainer) == expected


def evaluating(loop: Loop, instead: Callable[[], Awaitable[None]]) -> Loop:
    """Return an evaluation that first calls a function."""
    measure = loop._evaluation

    async def evaluation() -> Any:
        await instead()
        return await measure()

    loop._evaluation = evaluation
    return loop


def test_a_failed_evaluation_loses_neither_step_nor_policy(tmp_path: Path, capsys) -> None:
    trainer, seen = ScriptedTrainer(), []

    async def fail() -> None:
        seen.append((saves(trainer)[-1:], (tmp_path / "run/policy").is_dir()))
        if len(seen) > 1:
            raise TrainingError("the judge is gone")

    config = make_config(tmp_path / "run", steps=4, save_every=2, eval_every=2)
    summary = asyncio.run(evaluating(make_loop(config, trainer=trainer, held_out=HELD_OUT), fail).run())
    assert seen == [([], False), (["save 2"], False), (["save 4"], True)]
    assert (summary.finished, summary.before is None, summary.after) == (True, False, None)
    assert [line["step"] for line in metrics_of(tmp_path / "run", "eval")] == [0]
    assert "no evaluation after step 4: the judge is gone" in capsys.readouterr().err
    seen.append(())
    with pytest.raises(TrainingError, match="the judge is gone"):
        asyncio.run(evaluating(make_loop(make_config(tmp_path / "new"), held_out=HELD_OUT), fail).run())


def killed_at(evaluation: int) -> Callable[[], Awaitable[None]]:
    """Return a function for `evaluating` that kills the run at a step."""
    asked = []

    async def killed() -> None:
        asked.append(1)
        if len(asked) == evaluation:
            raise asyncio.CancelledError

    return killed


def test_an_evaluation_interrupted_after_its_checkpoint_is_repeated(tmp_path: Path) -> None:
    config = {name: make_config(tmp_path / name, save_every=2, eval_every=2) for name in ("whole", "parts")}
    asyncio.run(make_loop(config["whole"], held_out=HELD_OUT).run())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(evaluating(make_loop(config["parts"], held_out=HELD_OUT), killed_at(3)).run())
    assert [line["step"] for line in metrics_of(tmp_path / "parts", "eval")] == [0, 2]
    asyncio.run(make_loop(config["parts"], held_out=HELD_OUT).run())
    for kind in ("train", "eval"):
        assert metrics_of(tmp_path / "parts", kind) == metrics_of(tmp_path / "whole", kind)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(tmp_path: Path) -> RLConfig:
    write_problems(tmp_path / "train.jsonl", PROBLEMS)
    config = make_config(tmp_path / "run", problems={"path": str(tmp_path / "train.jsonl")})
    assert asyncio.run(make_loop(config).run()).finished
    return config


def test_a_finished_run_called_again_says_so_and_changes_nothing(finished: RLConfig, capsys) -> None:
    output = Path(finished.output)
    before = contents(output)
    capsys.readouterr()
    summary = train_policy(finished)
    assert (summary.steps, summary.finished, summary.policy) == (6, True, output / "policy")
    assert "this run is finished and is left unchanged" in capsys.readouterr().out
    assert contents(output) == before
    assert not ray.is_initialized()
    # Checkpoints may have been deleted since, because they are large.
    (output / "checkpoints").rename(output / "elsewhere")
    assert train_policy(finished).finished


def test_the_policy_of_no_run_is_not_a_finished_run(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", PROBLEMS)
    config = make_config(tmp_path / "run", problems={"path": str(tmp_path / "problems.jsonl")})
    (tmp_path / "run/policy").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="was not written by mmprm rl; choose another output"):
        train_policy(config)


def test_other_content_under_the_same_ids_is_another_run(finished: RLConfig, tmp_path: Path) -> None:
    write_problems(tmp_path / "train.jsonl", [replace(problem, answer="other") for problem in PROBLEMS])
    with pytest.raises(CheckpointError, match="belongs to a run with different settings: problems"):
        train_policy(finished)


def test_a_run_that_was_killed_in_its_last_evaluation_is_not_finished(tmp_path: Path) -> None:
    write_problems(tmp_path / "train.jsonl", PROBLEMS)
    write_problems(tmp_path / "test.jsonl", HELD_OUT)
    paths = {
        name: {"path": str(tmp_path / f"{file}.jsonl")} for name, file in (("problems", "train"), ("held_out", "test"))
    }
    config = make_config(tmp_path / "run", **paths)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(evaluating(make_loop(config, held_out=HELD_OUT), killed_at(2)).run())
    assert (tmp_path / "run/policy").is_dir()
    assert lacks_evaluation(config)
    total = config.total_steps(len(PROBLEMS))
    assert summary_without_training(config, total, PROBLEMS) is None
    asyncio.run(make_loop(config, held_out=HELD_OUT).run())
    assert summary_without_training(config, total, PROBLEMS).finished
    assert not lacks_evaluation(config)


def test_another_run_in_the_folder_is_refused_before_loading_anything(finished: RLConfig) -> None:
    other = finished.model_copy(update={"seed": 1})
    with pytest.raises(CheckpointError, match="belongs to a run with different settings: seed "):
        train_policy(other)
    assert not ray.is_initialized()


SCORER = {"backend": "server", "server": {"urls": ["http://localhost:1"]}}
PROCESS = {"scorer": SCORER, "score_timeout_seconds": 60}


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": {"optimization": {"learning_rate": 1e-7, "micro_batch_tokens": 99, "max_bad_steps": 9}}},
        {"trainer": {"gradient_checkpointing": True, "share_prompt": False, "timeout_seconds": 9}},
        {
            "process": {
                **PROCESS,
                "score_timeout_seconds": 99,
                "start_timeout_seconds": 9,
                "max_restarts": 9,
                "cores": 2,
            }
        },
        {"process": {**PROCESS, "scorer": {**SCORER, "server": {"urls": ["http://localhost:2"]}}}},
        {"process": {**PROCESS, "scorer": {**SCORER, "batch_tokens": 99}, "own_gpu": False}},
    ],
)
def test_settings_without_effect_on_the_result_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = make_config(tmp_path, process=PROCESS)
    assert make_config(tmp_path, **{"process": PROCESS, **changes}).resume_key() == base.resume_key()


def test_a_run_folder_of_version_0_1_is_resumed(tmp_path: Path) -> None:
    """Version 0.1 stored keys of sampling and of supervised training that a run could not set."""
    here = resume_key_of(make_config(tmp_path), 6, "problems")
    there = copy.deepcopy(here)
    there["sampling"] |= {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    there["trainer"]["optimisation"] = there["trainer"].pop("optimization") | {"epochs": 1, "log_every": 10}
    check_same(tmp_path, there, here)
    there["sampling"]["temperature"] = 0.5
    with pytest.raises(CheckpointError, match="different settings: sampling"):
        check_same(tmp_path, there, here)


def test_settings_that_affect_the_result_may_not_change(tmp_path: Path) -> None:
    base = make_config(tmp_path, process=PROCESS).resume_key()
    for changes in (
        {"trainer": {"optimization": {"seed": 1}}},
        {"trainer": {"optimization": {"weight_decay": 0.1}}},
        {"process": {**PROCESS, "scorer": {**SCORER, "too_long": "cut"}}},
        {"process": {**PROCESS, "aggregator": "min"}},
        {"process": None},
    ):
        assert make_config(tmp_path, **{"process": PROCESS, **changes}).resume_key() != base


def test_a_changed_learning_rate_and_filter_are_reported(tmp_path: Path, capsys) -> None:
    """Error messages propose these changes: a lower rate after NaN, and a wider filter if no groups remain."""
    values = {"trainer": WEIGHED, "save_every": 2, "filter": {"low": 0.3, "high": 0.6}}
    pool = ScriptedPool(lambda problem, rng: rng.choice(("right", "wrong")) if pool.version < 2 else "what")
    with pytest.raises(TrainingError, match="Widen filter"):
        asyncio.run(make_loop(make_config(tmp_path / "run", steps=20, **values), pool).run())
    values |= {"filter": {"low": 0.0, "high": 1.0}}
    values |= {"trainer": {**WEIGHED, "optimization": {"learning_rate": 1e-7}}}
    capsys.readouterr()
    assert asyncio.run(make_loop(make_config(tmp_path / "run", steps=20, **values)).run()).finished
    said = capsys.readouterr().out
    assert "trainer.optimization.learning_rate was 1e-06 and is 1e-07 from step " in said
    assert "filter was {'low': 0.3, 'high': 0.6, 'rounds': 3} and is " in said
    assert "and is {'low': 0.0, 'high': 1.0, 'rounds': 3} from step" in said


@pytest.mark.parametrize("ahead", [False, True])
def test_episodes_count_prompts_requested_under_a_filter(tmp_path: Path, ahead: bool, capsys) -> None:
    """20 problems are two passes over ten problems; without a filter, they are five steps."""
    config = make_config(tmp_path / "run", episodes=2, one_step_ahead=ahead, **STRICT)
    assert make_config(tmp_path, episodes=2, steps=None).total_steps(10) == config.total_steps(10) == 5
    pool = ScriptedPool()
    loop = make_loop(config, pool)
    summary = asyncio.run(loop.run())
    assert summary.finished
    assert summary.steps < summary.total == 5
    assert f"finished 2 passes over the problems after step {summary.steps}" in capsys.readouterr().out
    asked = [json.loads(path.read_text()) for path in sorted((tmp_path / "run/checkpoints").glob("*/extra.json"))]
    positions = [extra["collector"]["position"] for extra in asked]
    assert len(pool.asked) == positions[-1] >= 20
    assert not asked[-1]["pending"], "groups sampled ahead are trained on"
    # The previous step was not the last: passes remained, or a step had been sampled ahead.
    assert positions[-2] < 20 or asked[-2]["pending"] is not None
    again = ScriptedPool()
    assert asyncio.run(make_loop(config, again).run()).steps == summary.steps
    assert again.asked == []


def test_a_run_that_ends_with_an_error_has_a_report(tmp_path: Path) -> None:
    monitor = {"alarms": {"accuracy": {"min": 0.99}}, "patience": 2}
    with pytest.raises(TrainingError, match="step 2: accuracy="):
        asyncio.run(make_loop(make_config(tmp_path / "alarm", monitor=monitor)).run())
    assert "2 steps of reinforcement learning" in (tmp_path / "alarm/report.html").read_text()
    pool = ScriptedPool(lambda problem, rng: "what")
    with pytest.raises(TrainingError, match="nothing to train on"):
        asyncio.run(make_loop(make_config(tmp_path / "empty"), pool).run())
    assert "4 steps of reinforcement learning" in (tmp_path / "empty/report.html").read_text()


EARLY = [
    ({"rewards": {"functions": [{"path": "no_such_module:f"}]}}, r"functions.path='no_such_module:f'"),
    ({"rewards": {"functions": [{"path": "raises_on_import:f"}]}}, r"raises_on_import:f': ZeroDivisionError on import"),
    ({"rewards": {"functions": [{"path": "json:no_such"}]}}, r"functions.path='json:no_such'"),
    (
        {"monitor": {"alarms": {"prm_acu": {"min": 0.6}}}},
        r"monitor.alarms.prm_acu: this run does not log",
    ),
    (
        {"monitor": {"alarms": {"prm_auc": {"min": 0.6}}}},
        r"monitor.alarms.prm_auc: this run does not log",
    ),
    ({"monitor": {"alarms": {"kl_ref": {"max": 1}}}}, r"monitor.alarms.kl_ref: this run does not log this metric"),
    ({"sampling": {"temperature": 0}}, r"sampling.temperature=0 must be above 0 in RL"),
]


@pytest.mark.parametrize(("changes", "words"), EARLY)
def test_invalid_settings_are_rejected_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    (tmp_path / "raises_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=words):
        train_policy(make_config(tmp_path, **changes))


def test_alarms_on_metrics_of_this_run(tmp_path: Path) -> None:
    """The alarms pass the early checks, and the run fails later for lack of problems."""
    alarms = {name: {"max": 1} for name in ("kl_ref", "value_loss", "reward_json:loads", "seconds_sync", "prm_step_1")}
    config = make_config(
        tmp_path,
        process=PROCESS,
        credit={"mode": "step_gae"},
        monitor={"alarms": alarms},
        rewards={"functions": [{"path": "json:loads"}]},
        advantage={"estimator": "gae"},
        trainer={"loss": {"kl": {"coefficient": 0.1}}},
    )
    with pytest.raises(Exception, match=r"unused\.jsonl"):
        train_policy(config)


def test_fewer_steps_than_done_end_the_run_with_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_problems(tmp_path / "train.jsonl", PROBLEMS)
    config = make_config(tmp_path / "run", problems={"path": str(tmp_path / "train.jsonl")}, steps=6)
    loop = make_loop(config)
    asyncio.run(loop.run())
    output = Path(config.output)
    (output / "policy").rename(tmp_path / "elsewhere")  # like a run that was stopped after its newest checkpoint
    extra = {
        "step": 6,
        "identity": run_folder.resume_key_of(config, 40, problems_fingerprint(PROBLEMS, config)) | {"steps": 40},
    }
    monkeypatch.setattr(run_folder, "read_extra", lambda _: extra)
    written: list[Path] = []

    def convert(source: Path, target: Path) -> Trained:
        written.append(source)
        return Trained("policy", 6, source)

    monkeypatch.setattr(run_folder, "convert_checkpoint", convert)
    two = config.model_copy(update={"steps": 2})
    assert (summary_without_training(two, 2, PROBLEMS).finished, written) == (True, [output / "checkpoints"])
    assert "ends with step 6, as set by steps=2" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"steps=9: .* has done 6 of its 40 steps; set 6 or less .* or 40"):
        summary_without_training(config.model_copy(update={"steps": 9}), 9, PROBLEMS)
    with pytest.raises(CheckpointError, match="different settings: seed"):
        summary_without_training(two.model_copy(update={"seed": 1}), 2, PROBLEMS)
