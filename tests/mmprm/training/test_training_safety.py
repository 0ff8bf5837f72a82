"""Test a run with non-finite numbers, a SIGTERM or a crash: what it skips, where it stops, and where it resumes."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scripted_training import ALONE, NoTask, ScriptedEngine, rows, run

from mmprm.backbone.load import new_model_folder
from mmprm.config import load
from mmprm.errors import CheckpointError, ConfigError, DataError, TrainingError
from mmprm.training import checkpoints
from mmprm.training.config import TrainingConfig
from mmprm.training.ranks import Ranks, check_shared, join_ranks
from mmprm.training.stop_request import StopRequest


def test_bad_steps_are_counted_and_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    run(tmp_path / "few", ScriptedEngine(bad=(2, 3, 5, 6, 8)), max_bad_steps=3)
    assert [row["skipped"] for row in rows(tmp_path / "few")] == [0, 1, 1, 0, 1, 1, 0, 1]
    assert [row["loss"] for row in rows(tmp_path / "few")][:3] == [1.0, None, None]
    kept = tmp_path / "many/checkpoints/step-00000004"
    with pytest.raises(
        TrainingError, match=rf"step 7: .* training.max_bad_steps=3 consecutive steps; .* {kept}\. Raise"
    ):
        run(tmp_path / "many", ScriptedEngine(bad=(2, 5, 6, 7)), max_bad_steps=3, save_every=4)
    assert len(rows(tmp_path / "many")) == 7
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        run(tmp_path / "none", ScriptedEngine(bad=(1,)), max_bad_steps=1)
    run(tmp_path / "many", ScriptedEngine(bad=(5, 6, 7)), max_bad_steps=4, save_every=4)


def test_sigterm_saves_after_the_current_step_and_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, ScriptedEngine(ask_at=3))
    assert stopped.value.code == 0
    assert "saved after step 3 of 8. Run the same command to resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert run(tmp_path, ScriptedEngine()) == {"loss": 0.5}
    assert [row["loss"] for row in rows(tmp_path)] == [1.0 / step for step in range(1, 9)]


def test_a_failed_evaluation_loses_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> dict[str, float]:
        raise DataError("a held-out image is gone")

    with monkeypatch.context() as patched:
        patched.setattr(NoTask, "evaluate", fails)
        with pytest.raises(DataError, match="held-out"):
            run(tmp_path, ScriptedEngine(), save_every=4, eval_every=4)
    for _ in range(2):
        assert run(tmp_path, ScriptedEngine(), save_every=4, eval_every=8) == {"loss": 0.5}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in lines] == [*(("train", step) for step in range(1, 9)), ("eval", 8)]


def test_an_evaluation_interrupted_after_its_checkpoint_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NoTask, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, ScriptedEngine(), save_every=4, eval_every=4)
    run(tmp_path, ScriptedEngine(), save_every=4, eval_every=4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["kind"] == "eval"] == [4, 8]


def test_without_held_out_data_the_last_line_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoTask, "evaluate", lambda *_: {})
    assert run(tmp_path, ScriptedEngine()) == {}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum('"eval"' in line for line in lines) == 1


def test_a_request_at_the_last_step_lets_the_run_end(tmp_path: Path) -> None:
    assert run(tmp_path, ScriptedEngine(ask_at=8)) == {"loss": 0.5}
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_main_thread_handles_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def listen() -> None:
        with StopRequest(ALONE) as stop:
            seen.append((stop.came(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_garbage_line_of_the_log_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, ScriptedEngine(ask_at=3))
    log = tmp_path / "metrics.jsonl"
    log.write_text("garbage\n" + log.read_text() + '{"kind": "train"')
    run(tmp_path, ScriptedEngine())
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))


def test_ctrl_c_saves_after_the_current_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine(ask_at=3)
    engine.ask_with = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, engine)
    assert "Ctrl-C; saved after step 3 of 8. Run the same command to resume" in capsys.readouterr().out
    run(tmp_path, ScriptedEngine())
    assert [row["loss"] for row in rows(tmp_path)] == [1.0 / step for step in range(1, 9)]


def test_a_second_ctrl_c_stops_at_once() -> None:
    with StopRequest(ALONE) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.came()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The previous checkpoint is intact, and the partial new one is never taken for a complete one."""

    def full(folder: str, tag: str, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    engine = ScriptedEngine()
    checkpoints.save(engine, tmp_path, 1, {}, keep=1)
    monkeypatch.setattr(engine, "save_checkpoint", full)
    with pytest.raises(
        CheckpointError, match=r"step-00000002: cannot be written .*No space left.*free some disk space"
    ):
        checkpoints.save(engine, tmp_path, 2, {}, keep=1)
    assert checkpoints.newest(tmp_path) == tmp_path / "step-00000001"


def test_the_callers_state_is_a_separate_file(tmp_path: Path) -> None:
    """The state may take tens of megabytes, and checking a checkpoint must not read it."""
    extra = {"carried": [{"token_ids": list(range(20_000))}]}
    checkpoints.save(ScriptedEngine(), tmp_path, 1, {"seed": 0}, keep=2, extra=extra)
    path = tmp_path / "step-00000001"
    assert (path / "state.json").stat().st_size < 1000
    assert "\n" not in (path / "extra.json").read_text()
    assert checkpoints.read_extra(tmp_path) == extra
    checkpoints.save(ScriptedEngine(), tmp_path, 2, {"seed": 0}, keep=2)
    assert checkpoints.read_extra(tmp_path) is None
    with (path / "extra.json").open("r+b") as file:
        file.truncate(100)
    (tmp_path / "step-00000002/state.json").unlink()
    assert checkpoints.newest(tmp_path) is None


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make writes beyond `size` bytes fail in the system call, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_torch_and_safetensors_raise_on_a_full_disk(tmp_path: Path) -> None:
    """They raise RuntimeError and SafetensorError, not OSError. The old file is kept, and no partial file remains."""
    engine, tensors = ScriptedEngine(), {"weight": torch.zeros(100_000)}
    checkpoints.save(engine, tmp_path, 1, {}, keep=1)
    engine.save_checkpoint = lambda folder, **options: torch.save(tensors, Path(folder) / "weights.pt")
    with files_of_at_most(50_000), pytest.raises(CheckpointError, match=r"step-00000002: cannot be written .*free"):
        checkpoints.save(engine, tmp_path, 2, {}, keep=1)
    (tmp_path / "prm").mkdir()

    def save_model() -> None:
        with new_model_folder(tmp_path / "prm") as folder:
            folder.mkdir()
            save_file(tensors, folder / "model.safetensors")

    message = r"prm: cannot be written .*File too large.*free some disk space or choose"
    with files_of_at_most(50_000), pytest.raises(CheckpointError, match=message):
        save_model()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prm", "step-00000001"]
    with pytest.raises(RuntimeError, match="of another kind"), new_model_folder(tmp_path / "prm"):
        raise RuntimeError("of another kind")


class ThreadRanks(Ranks):
    """Simulates ranks as threads of one process; each may see a different disk."""

    def gather(self, value: Any) -> list[Any]:
        gathered[self.rank] = value
        meeting.wait(60)
        values = list(gathered)
        meeting.wait(60)
        return values


gathered: list[Any] = [None, None]

meeting = threading.Barrier(2)


def test_all_ranks_must_see_the_output(tmp_path: Path) -> None:
    def errors(*folders: Path) -> list[str]:
        def one(rank: int) -> str:
            try:
                check_shared(ThreadRanks(rank, 2, torch.device("cpu")), folders[rank], "output")
            except ConfigError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    assert errors(tmp_path / "run", tmp_path / "run") == ["", ""]
    assert list((tmp_path / "run").iterdir()) == []
    for message in errors(tmp_path / "run", tmp_path / "of another machine"):
        assert "rank 1 does not see what rank 0 writes there; choose a folder on shared storage" in message
        assert message.startswith("output=")
    (tmp_path / "file").touch()
    assert all("cannot be written" in message for message in errors(tmp_path / "file", tmp_path / "file"))


def test_offload_without_the_sharding_that_it_needs() -> None:
    for stage, offload, least in ((0, "optimizer", 1), (0, "all", 3), (2, "all", 3)):
        with pytest.raises(ConfigError, match=f"offload='{offload}': needs zero_stage of at least {least}"):
            load(TrainingConfig, None, [f"zero_stage={stage}", f"offload={offload}"])
    load(TrainingConfig, None, ["zero_stage=1", "offload=optimizer"])
    load(TrainingConfig, None, ["zero_stage=3", "offload=all"])


def test_a_single_process_sets_no_rank_for_its_children() -> None:
    assert join_ranks() == join_ranks()
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & set(os.environ)
