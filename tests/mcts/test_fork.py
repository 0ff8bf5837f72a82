"""Test forks of a run under another configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.fork import fork
from mcts.progress import CampaignSummary
from mcts.worker import LocalWorker
from mmprm.cli import annotate, filter
from mmprm.cli.main import main
from mmprm.problems import ProblemsConfig, load_problems
from tests.mcts import scripted_campaign as scripted
from tests.mcts.scripted_campaign import PROBLEMS, batches


def run_scripted(config: CampaignConfig, model_folder: str | None = None) -> CampaignSummary:
    async def make(number: int) -> LocalWorker:
        return scripted.local_worker(config, delay=0.0)

    return run_campaign(config, make_worker=make)


def small(problems: Path, run: Path, **search: object) -> CampaignConfig:
    return scripted.config(str(problems), str(run), search={"rollouts": 4, "max_rollouts": 24, **search})


def test_a_larger_budget_continues_from_the_batches(problems: Path, tmp_path: Path) -> None:
    """The fork equals a run that had the larger budget from the start, and samples only the missing rollouts."""
    run_scripted(small(problems, tmp_path / "run"))
    before = batches(tmp_path / "run")
    config, message = fork(small(problems, tmp_path / "run", max_rollouts=60))
    assert config.output == str(tmp_path / "run-2")
    assert "search.max_rollouts (stored 24, asked 60)" in message
    assert message.endswith("run-2 with its problems and batches")
    summary = run_scripted(config)
    fresh = run_scripted(small(problems, tmp_path / "fresh", max_rollouts=60))
    assert batches(tmp_path / "run-2") == batches(tmp_path / "fresh")
    sampled = sum(len(batch.rollouts) for log in before.values() for batch in log)
    assert (summary.new_rollouts, fresh.new_rollouts) == (fresh.rollouts - sampled, fresh.rollouts)
    assert sampled > 0 < summary.new_rollouts
    assert batches(tmp_path / "run") == before, "the old run is unchanged"


def test_a_smaller_budget_keeps_no_batch(problems: Path, tmp_path: Path) -> None:
    """With the smaller budget, the search would stop before some stored batches, which must not count as labels."""
    run_scripted(small(problems, tmp_path / "run", max_rollouts=60))
    config, message = fork(small(problems, tmp_path / "run", max_rollouts=24, max_searches=300))
    assert "without batches" in message
    forked, fresh = run_scripted(config), run_scripted(small(problems, tmp_path / "fresh", max_rollouts=24))
    assert batches(config.output) == batches(tmp_path / "fresh")
    assert (forked.states, forked.labels) == (fresh.states, fresh.labels)


def test_another_policy_setting_keeps_the_problems_alone(problems: Path, tmp_path: Path) -> None:
    first = run_scripted(small(problems, tmp_path / "run"))
    config, message = fork(small(problems, tmp_path / "run").model_copy(update={"seed": 1}))
    assert "seed (stored 0, asked 1)" in message
    assert "without batches" in message
    assert not any(batches(config.output).values())
    assert run_scripted(config).problems == first.problems


def test_the_same_command_resumes_in_the_same_fork(problems: Path, tmp_path: Path) -> None:
    asked = small(problems, tmp_path / "run", max_rollouts=60)
    assert fork(asked) == (asked, ""), "without a store there is nothing to fork"
    run_scripted(small(problems, tmp_path / "run"))
    assert fork(small(problems, tmp_path / "run"))[1] == ""
    first, _ = fork(asked)
    again, message = fork(asked)
    assert again == first
    assert message == f"{tmp_path / 'run-2'} has this configuration; resuming it"
    assert fork(small(problems, tmp_path / "run", max_rollouts=32))[0].output == str(tmp_path / "run-3")


def test_annotate_says_where_a_fork_goes(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(annotate, "run_campaign", run_scripted)
    asked = ["annotate", "--set", f"problems.path={problems}", "--set", f"output={tmp_path / 'run'}"]
    asked += ["--set", "engine.model=scripted", "--set", "search.rollouts=4", "--set", "search.max_rollouts=40"]
    assert main(asked) == 0
    assert main([*asked, "--set", "seed=1"]) == 2
    assert "seed (stored 0, asked 1); restore these settings, continue in a copy with mmprm annotate --fork" in (
        capsys.readouterr().err
    )
    assert main([*asked, "--set", "seed=1", "--fork"]) == 0
    assert f"continuing in {tmp_path / 'run-2'} with its problems" in capsys.readouterr().out


def test_filter_keeps_a_range_of_accuracy(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(filter, "run_campaign", run_scripted)
    asked = ["filter", "--set", f"problems.path={problems}", "--set", f"output={tmp_path / 'run'}"]
    asked += ["--set", "engine.model=scripted", "--samples", "6", "--output", str(tmp_path / "kept.jsonl")]
    assert main([*asked, "--low", "0.4", "--high", "0.7"]) == 0
    said = capsys.readouterr().out
    logs = batches(tmp_path / "run")
    assert {len(log) for log in logs.values()} == {1}, "only the question is sampled from"
    accuracy = {name: sum(r.verdict == 1 for r in log[0].rollouts) / 6 for name, log in logs.items()}
    kept = {name: share for name, share in accuracy.items() if 0.4 <= share <= 0.7}
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert {row["id"]: row["accuracy"] for row in rows} == pytest.approx(kept)
    assert all((row["correct"] + row["incorrect"], row["unknown"]) == (6, 0) for row in rows)
    assert [problem.id for problem in load_problems(ProblemsConfig(path=str(tmp_path / "kept.jsonl")))] == list(kept)
    hard, easy = sum(share < 0.4 for share in accuracy.values()), sum(share > 0.7 for share in accuracy.values())
    assert hard > 0
    assert easy > 0
    assert f"{len(kept)} problems kept; left out: {hard} too hard, {easy} too easy, 0 without" in said

    monkeypatch.setattr(filter, "run_campaign", lambda config, model_folder: run_campaign(config, make_worker=None))
    assert main([*asked, "--low", "0", "--high", "1"]) == 0, "another range on a finished run starts no engine"
    assert f"{PROBLEMS} problems kept" in capsys.readouterr().out


def test_filter_writes_the_problems_of_the_file_given_now(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(filter, "run_campaign", run_scripted)
    asked = ["filter", "--set", f"output={tmp_path / 'run'}", "--set", "engine.model=scripted", "--samples", "6"]
    asked += ["--low", "0", "--high", "1", "--output", str(tmp_path / "kept.jsonl")]
    assert main([*asked, "--set", f"problems.path={problems}"]) == 0
    rows = [{"id": name, "question": "question 3", "answer": "3"} for name in ("p3", "new")]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*asked, "--set", f"problems.path={tmp_path / 'other.jsonl'}"]) == 0
    kept = [json.loads(line)["id"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert kept == ["p3", "new"]


def test_filter_refuses_a_range_before_it_samples(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["filter", "--set", f"problems.path={problems}", "--set", f"output={tmp_path / 'run'}"]
    asked += ["--set", "engine.model=scripted", "--output", str(tmp_path / "kept.jsonl")]
    assert main([*asked, "--low", "0.9", "--high", "0.1"]) == 2
    assert "must satisfy 0 ≤ low ≤ high ≤ 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
