"""Test that an RL run stopped by version 0.1 after step 4 of 6 is resumed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripted_rl import ScriptedTrainer, make_config, make_loop

from mmprm.errors import CheckpointError
from mmprm.report.training import read_metrics

FOLDER = Path(__file__).parent.parent / "data/version-0.1"
AHEAD = {"one_step_ahead": True, "rollouts": {"colocated": False}, "trainer": {"loss": {"importance_cap": 2}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a copy of the run folder."""
    return Path(shutil.copytree(FOLDER / "rl", tmp_path / "rl"))


@pytest.mark.parametrize(("name", "settings"), [("rl", {}), ("rl-ahead", AHEAD)])
def test_a_resumed_run_ends_like_one_of_this_version(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """A scripted trainer's weights are a hash of its training data. With one_step_ahead, the checkpoint also has the
    groups of step 5.
    """
    shutil.copytree(FOLDER / name, tmp_path / "rl")
    resumed, fresh = ScriptedTrainer(), ScriptedTrainer()
    asyncio.run(make_loop(make_config(tmp_path / "rl", **settings), trainer=resumed).run())
    asyncio.run(make_loop(make_config(tmp_path / "fresh", **settings), trainer=fresh).run())
    assert (resumed.updates, resumed.progress) == (6, fresh.progress[4:])
    assert resumed.weights == fresh.weights


def test_other_settings_are_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"different settings: sampling\.temperature"):
        asyncio.run(make_loop(make_config(run, sampling={"temperature": 0.5})).run())


def test_its_metrics_are_continued(run: Path) -> None:
    asyncio.run(make_loop(make_config(run, save_every=2)).run())
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
