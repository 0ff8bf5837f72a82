"""Test `mmprm bridge` with engines in place of servers: when they start and stop, and what a failed start does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import png

from mmprm.cli import bridge as command
from mmprm.cli.main import main
from mmprm.errors import CheckpointError, SamplingError
from mmprm.sampling.config import EngineConfig
from mmprm.types import Completion, SampleRequest

THOUGHTS = "AB is 3 and BC is 4. " + "Both lie on one line, so I add the two lengths. " * 3


class Engines:
    """Starts scripted engines, and logs the starts and stops by model."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.events = fails, list[str]()

    @asynccontextmanager
    async def open(self, engine: EngineConfig, *_: Any, **__: Any) -> AsyncIterator[Engines]:
        if engine.model == self.fails:
            raise SamplingError(f"{engine.model}: the engine did not start")
        self.events.append(f"start {engine.model}")
        yield self
        self.events.append(f"stop {engine.model}")

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        text = f"<think>{THOUGHTS}</think><answer>7</answer>"
        return (Completion("A line with AB = 3 and BC = 4." if request.problem.images else text, 9, "stop"),)


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, engines: Engines, *sets: str, check: Any = lambda *_: None
) -> int:
    (folder / "a.png").write_bytes(png())
    row = {"question": "How long is AC?", "answer": "7", "image": "a.png"}
    (folder / "p.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(command, "open_sampler", engines.open)
    monkeypatch.setattr(command, "check_policy", check)
    monkeypatch.setattr(command.actors, "connect", lambda address: None)
    values = {"problems.path": folder / "p.jsonl", "output": folder / "out"}
    for name in ("seer", "reasoner"):
        values |= {f"{name}.engine.model": name, f"{name}.engine.dtype": "float32"}
    return main(["bridge", *(f"--set={key}={value}" for key, value in values.items()), *sets])


def test_the_engines_take_turns_and_a_cached_run_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines()
    assert run(tmp_path, monkeypatch, engines) == 0
    assert engines.events == ["start seer", "stop seer", "start reasoner", "stop reasoner"]
    row = json.loads((tmp_path / "out/kept.jsonl").read_text())
    assert (row["bridge"]["seer"], row["bridge"]["reasoner"]) == ("seer", "reasoner")
    assert run(tmp_path, monkeypatch, engines) == 0
    assert len(engines.events) == 4
    assert run(tmp_path, monkeypatch, engines, "--set=reasoner.sampling.temperature=1") == 0
    assert engines.events[4:] == ["start reasoner", "stop reasoner"], "the seer's replies are cached"


def test_an_engine_that_does_not_start_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = Engines(fails="reasoner")
    assert run(tmp_path, monkeypatch, engines) == 2
    assert "reasoner: the engine did not start" in capsys.readouterr().err
    assert engines.events == ["start seer", "stop seer"]


def test_an_unsuitable_model_is_refused_with_its_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(engine: EngineConfig, *_: Any) -> None:
        if engine.model == "reasoner":
            raise CheckpointError("reasoner: holds no weights")

    engines = Engines()
    assert run(tmp_path, monkeypatch, engines, check=check) == 2
    assert "reasoner: reasoner: holds no weights" in capsys.readouterr().err
    assert engines.events == []
