"""Test `mmprm tiny problems`: levels, and solutions with and without mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli.main import main


def written(folder: Path, *words: str) -> list[dict[str, Any]]:
    file = folder / f"{'-'.join(words)}.jsonl"
    assert main(["tiny", "problems", "--output", str(file), "--count", "60", "--split", "train", *words]) == 0
    return [json.loads(line) for line in file.read_text().splitlines()]


def correct(rows: list[dict[str, Any]]) -> float:
    return sum(row["solution"].endswith(f"<answer>{row['answer']}</answer>") for row in rows) / len(rows)


def test_the_level_sets_the_number_of_operations(tmp_path: Path) -> None:
    operations = [
        {row["question"].count(" ") // 2 - 2 for row in written(tmp_path, "--level", level)}
        for level in ("short", "long")
    ]
    assert operations == [{1, 2, 3, 4}, set(range(8, 15))]


def test_solutions_are_correct_unless_mistakes_are_asked_for(tmp_path: Path) -> None:
    assert correct(written(tmp_path, "--solutions")) == 1.0
    flawed = written(tmp_path, "--solutions", "--mistakes")
    assert 0.3 < correct(flawed) < 0.8
    assert written(tmp_path, "--solutions", "--mistakes") == flawed
    none = ("--set", "mistake_rate=0", "--set", "hard_mistake_rate=0")
    assert correct(written(tmp_path, "--solutions", "--mistakes", *none)) == 1.0


def test_long_solutions_with_mistakes_are_rarely_correct(tmp_path: Path) -> None:
    assert 0 < correct(written(tmp_path, "--level", "long", "--solutions", "--mistakes")) < 0.25


def test_sokoban_policy_is_trained_with_its_own_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {
        "max_turns": 3,
        "vision_steps": 1,
        "move_steps": 1,
        "move_batch": 2,
        "play_steps": 1,
        "mistake_steps": 1,
        "batch": 2,
    }
    few |= {"held_out": 2, "threads": 1}
    sets = [word for key, value in few.items() for word in ("--set", f"{key}={value}")]
    assert main(["tiny", "sokoban-policy", "--output", str(tmp_path), *sets]) == 0
    assert "solve_rate: " in capsys.readouterr().out
    stored = json.loads((tmp_path / "sokoban.json").read_text())
    assert {key: stored["config"][key] for key in few} == few
    assert main(["tiny", "sokoban-policy", "--output", str(tmp_path), "--set", "problems=3"]) == 2
    assert "problems" in capsys.readouterr().err


def test_mistakes_without_solutions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "problems", "--output", str(tmp_path / "p.jsonl"), "--mistakes"]) == 2
    assert "--mistakes needs --solutions" in capsys.readouterr().err
