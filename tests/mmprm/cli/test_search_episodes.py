"""Test `mmprm search` with an environment: guided episodes are compared with the best of several episodes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprm.cli import search as command
from mmprm.cli.main import main
from mmprm.prm.info import JudgeInfo, PrmInfo
from mmprm.problems import write_problems
from mmprm.tiny.sokoban_player import SolverPlayer
from tests.mmprm.selection.test_episode_search import LEVELS, SolverScorer


@pytest.fixture
def checked() -> list[int]:
    """Return the list of the maximum numbers of tokens with which the policy was checked."""
    return []


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: list[int]) -> list[str]:
    @contextlib.contextmanager
    def opened(*arguments: object) -> Iterator[SolverPlayer]:
        yield SolverPlayer(0.6)

    scorer = SolverScorer()
    scorer.close = lambda: None
    monkeypatch.setattr(command, "scorer_info", lambda config: PrmInfo(aggregator="last"))
    monkeypatch.setattr(command, "open_scorer", lambda config: scorer)
    monkeypatch.setattr(command, "check_config", lambda config, *_: checked.append(config.sampling.max_tokens))
    monkeypatch.setattr(command, "opened_player", opened)
    write_problems(tmp_path / "levels.jsonl", LEVELS)
    values = {
        "problems.path": tmp_path / "levels.jsonl",
        "engine.model": "x",
        "engine.images_per_prompt": 12,
        "prompt.preset": "plain",
        "environment.path": "sokoban",
        "environment.max_turns": 12,
        "environment.max_turn_tokens": 4,
        "scorer.prm": "p",
        "output": tmp_path / "out",
        "search.strategy": "beam",
        "search.beams": 1,
        "baseline": 16,
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def test_guided_episodes_are_compared_with_the_best_of_n(sets: list[str], checked: list[int], tmp_path: Path) -> None:
    assert main(["search", *sets]) == 0
    assert checked == [4], "a turn must fit into the context, not a whole solution"
    rows = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (len(rows), summary["problems"], summary["failed"]) == (12, 12, {})
    assert summary["generated_tokens"] == summary["samples"] == 8 * sum(len(row["scores"]) for row in rows)
    assert summary["accuracy"]["prm"]["value"] > 0.9
    assert summary["best_of_n_at_equal_tokens"]["difference"]["random"]["value"] > 0.3


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (JudgeInfo(), "a thinking judge does not read episodes"),
        (PrmInfo(format="qwen", aggregator="min"), "scorer.prm=p has the format qwen, which cannot express episodes"),
    ],
)
def test_scorers_that_cannot_read_episodes_are_refused(
    info: PrmInfo,
    message: str,
    sets: list[str],
    checked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "scorer_info", lambda config: info)
    assert main(["search", *sets]) == 2
    assert message in capsys.readouterr().err
    assert not checked, "refused before the policy is loaded"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("search.beams=2", "search.beams=2 with search.strategy=beam must be 1"),
        ("engine.images_per_prompt=3", "engine.images_per_prompt=3 must be at least 12"),
        ("prompt.preset=steps", "prompt.preset=steps must be plain"),
    ],
)
def test_settings_that_cannot_play_are_refused(
    more: str, message: str, sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *sets, "--set", more]) == 2
    assert message in capsys.readouterr().err
