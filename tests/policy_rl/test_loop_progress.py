"""Test the progress of a run, and updates from groups that a filter keeps, delays or carries over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scripted_rl import (
    KINDS,
    PROBLEMS,
    WEIGHED,
    ScriptedPool,
    ScriptedTrainer,
    make_config,
    make_loop,
    metrics_of,
)


def test_progress_without_a_filter_is_that_of_the_updates(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    asyncio.run(make_loop(make_config(tmp_path / "run", **KINDS["updates"]), trainer=trainer).run())
    assert trainer.progress == pytest.approx([number / 12 for number in range(12)])


@pytest.mark.parametrize("changes", [{"steps": None, "episodes": 3}, {"steps": 8}])
def test_progress_with_a_filter_is_that_of_the_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    """It is measured in passes over the problems or in steps, but never in updates, of which there may be fewer."""
    trainer, pool = ScriptedTrainer(), ScriptedPool()
    config = make_config(tmp_path / "run", **(KINDS["filter"] | changes))
    summary = asyncio.run(make_loop(config, pool, trainer).run())
    assert trainer.progress[0] == 0.0
    assert trainer.progress == sorted(trainer.progress)
    if changes["steps"] is None:
        assert summary.steps < summary.total, "an upper bound"
        before_last = len(pool.asked) - sum(version == summary.steps - 1 for *_, version, _ in pool.asked)
        assert trainer.progress[-1] == pytest.approx(before_last / 30)
    else:
        assert trainer.progress[-1] == pytest.approx(7 / 8)


def test_a_run_whose_groups_wait_ends_with_its_passes_and_its_schedule(tmp_path: Path, capsys) -> None:
    """With one round per step, half of the requested groups are carried over, so there are more steps than problems /
    prompts.
    """
    trainer, pool = ScriptedTrainer(), ScriptedPool()
    config = make_config(tmp_path / "run", **(KINDS["filter with updates"] | {"steps": None, "episodes": 4}))
    summary = asyncio.run(make_loop(config, pool, trainer).run())
    assert (summary.finished, summary.total) == (True, 10)
    assert 40 <= len(pool.asked) < 44
    assert summary.steps > summary.total
    assert 0.8 < trainer.progress[-1] < 1
    assert f"finished 4 passes over the problems after step {summary.steps}" in capsys.readouterr().out


def test_updates_keep_their_size_under_a_filter(tmp_path: Path, capsys) -> None:
    """One round gives two updates of two groups each, never an update of one or three groups."""
    trainer = ScriptedTrainer()
    config = make_config(tmp_path / "run", **(KINDS["filter with updates"] | {"steps": 12}))
    asyncio.run(make_loop(config, trainer=trainer).run())
    assert [len({each.group for each in batch}) for batch in trainer.batches] == [2] * trainer.updates
    lines = metrics_of(tmp_path / "run")
    assert {line["updates"] for line in lines} >= {0, 1}, "fewer of them"
    assert sum(line["groups"] for line in lines) == 2 * trainer.updates
    assert lines[-1]["carried"] in (0, 1)
    left = "1 groups are left over, fewer than the 2 of an update" in capsys.readouterr().out
    assert left == (lines[-1]["carried"] == 1)


def test_steps_that_wait_for_enough_groups_do_not_end_the_run(tmp_path: Path) -> None:
    """One of ten problems passes the filter, so an update of two groups takes two passes over all of them."""
    middling = PROBLEMS[0].id
    pool = ScriptedPool(lambda problem, rng: rng.choice(("right", "wrong")) if problem.id == middling else "wrong")
    trainer = ScriptedTrainer()
    batch = {"prompts": 2, "group_size": 12, "updates": 1}
    changes = {"filter": {"low": 0.1, "high": 0.9, "rounds": 2}, "trainer": WEIGHED, "batch": batch, "steps": 12}
    assert asyncio.run(make_loop(make_config(tmp_path / "run", **changes), pool, trainer).run()).finished
    lines = metrics_of(tmp_path / "run")
    assert trainer.updates == sum(line["updates"] for line in lines) >= 2
    assert [len({each.group for each in batch}) for batch in trainer.batches] == [2] * trainer.updates
    assert 1 in {line["carried"] for line in lines}
