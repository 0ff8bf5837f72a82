"""Test checkpoints that are damaged, incomplete, older, or from another number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_training import ScriptedEngine, rows, run

from mmprm.errors import CheckpointError
from mmprm.training import checkpoints


def spoil_size(path: Path) -> None:
    with (path / "deepspeed/weights.pt").open("ab") as file:
        file.truncate(1)


def lose_file(path: Path) -> None:
    (path / "random-0.pt").unlink()


def cut_state(path: Path) -> None:
    (path / "state.json").write_text('{"step": ')


def lose_state(path: Path) -> None:
    (path / "state.json").unlink()


def flip_bytes(path: Path) -> None:
    file = path / "deepspeed/weights.pt"
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))


def step_as_text(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"step": "8"}))


def another_step(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"step": 7}))


FAULTS = {flip_bytes: "deepspeed/weights.pt is damaged", another_step: "state.json is damaged"}


@pytest.mark.parametrize(
    "spoil", [spoil_size, lose_file, cut_state, lose_state, flip_bytes, step_as_text, another_step]
)
def test_an_incomplete_checkpoint_is_skipped(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, ScriptedEngine(), save_every=2, keep_checkpoints=3)
    saved = tmp_path / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == [f"step-0000000{step}" for step in (4, 6, 8)]
    spoil(saved / "step-00000008")
    (saved / ".step-00000009.tmp").mkdir()
    (saved / ".step-00000002.old").mkdir()
    assert checkpoints.newest(saved) == saved / "step-00000006"
    engine = ScriptedEngine()
    run(tmp_path, engine, save_every=2, keep_checkpoints=3)
    assert engine.steps == 8
    fault = FAULTS.get(spoil, "is incomplete")
    assert f"{saved / 'step-00000008'}: {fault}; skipping it" in capsys.readouterr().out
    assert checkpoints.newest(saved) == saved / "step-00000008"
    assert sorted(path.name for path in saved.iterdir()) == [f"step-0000000{step}" for step in (4, 6, 8)]
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))


def test_an_older_checkpoint_is_resumed(tmp_path: Path) -> None:
    """Older checkpoints have no checksums, and no record of the learning rate decay, which was always a cosine."""
    run(tmp_path, ScriptedEngine(), save_every=4)
    for file in tmp_path.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        assert state["identity"].pop("learning_rate_decay") == "cosine"
        file.write_text(json.dumps({key: state[key] for key in ("step", "identity", "files")}))
    assert checkpoints.steps_done(tmp_path / "checkpoints") == 8
    run(tmp_path, engine := ScriptedEngine(), save_every=4)
    assert engine.steps == 8
    with pytest.raises(CheckpointError, match=r"learning_rate_decay \(stored 'cosine', asked 'linear'"):
        run(tmp_path, ScriptedEngine(), save_every=4, learning_rate_decay="linear")


class TwoRanks:
    rank, count, is_main = 0, 2, True

    def gather(self, value: Any) -> list[Any]:
        return [value] * 2


def test_a_checkpoint_of_one_rank_is_refused_on_two(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    checkpoints.save(engine, tmp_path, 1, {}, keep=1)
    engine.ranks = TwoRanks()
    with pytest.raises(CheckpointError, match="was written by 1 rank, but this run has 2; start 1"):
        checkpoints.resume(engine, tmp_path, {})
