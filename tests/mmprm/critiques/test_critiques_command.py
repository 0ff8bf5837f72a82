"""Test `mmprm labels critiques` with a teacher on a scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Act, ScriptedServer, says

from mmprm.cli.main import main
from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.types import Counts, LabeledPath, Problem
from tests.mmprm.scoring.scripted_judge import lines


def lenient(request: dict[str, Any]) -> Act:
    """Think, and call both steps correct."""
    thoughts = {"message": {"content": lines(1, 1), "reasoning": "I add."}}
    return says("", choice=thoughts, top={"usage": {"completion_tokens": 30}})


def labels(folder: Path) -> None:
    examples = [
        LabeledExample(Problem(name, f"question {name}", "1"), LabeledPath(name, ("a", "b"), counts, False), "train")
        for name, counts in {"good": (Counts(4), Counts(3, 1)), "bad": (Counts(2, 2), Counts(0, 4))}.items()
    ]
    write_parquet(folder / "labels.parquet", examples)


def run(folder: Path, server: ScriptedServer, *more: str) -> int:
    values = {"labels": folder / "labels.parquet", "output": folder / "out", "teacher.engine.model": "teacher"}
    values |= {"teacher.engine.servers.urls": [server.url], "teacher.cache": folder / "replies.sqlite"}
    return main(["labels", "critiques", *(f"--set={key}={value}" for key, value in values.items()), *more])


def test_the_command_asks_the_teacher_once_and_reports_what_it_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels(tmp_path)
    with ScriptedServer(lenient) as server:
        assert run(tmp_path, server) == run(tmp_path, server) == 0
    assert len(server.requests) == 2
    printed = capsys.readouterr().out
    assert "labels.parquet: 2 labeled solutions, 1 with an incorrect step" in printed
    assert "kept.jsonl: 1 of 2 critiques kept, of 1 solutions (0 with an incorrect step); 60 tokens" in printed
    assert "refused: 1 × calls an incorrect step correct" in printed
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert row["conversations"][-1]["value"] == f"<think>I add.</think>{lines(1, 1)}"


def test_a_higher_threshold_of_labels_changes_what_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With value_above=0.8, the second step of the good solution, of value 0.75, is incorrect."""
    labels(tmp_path)
    with ScriptedServer(lenient) as server:
        assert run(tmp_path, server, "--set=selection.rule.value_above=0.8") == 2
    assert "no critique was kept (2 × calls an incorrect step correct)" in capsys.readouterr().err
