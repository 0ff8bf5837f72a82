"""Checkpoints to resume from: model, optimizer, schedule, step and random state; a folder is whole or passed over.

They are DeepSpeed's own files, which are pickles: resume only from checkpoints of your own. Frozen weights are not in
them: they come from the model that the run began with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mmprm.errors import CheckpointError
from mmprm.training.engine import Engine

_STATE, _EXTRA = "state.json", "extra.json"


def save(
    engine: Engine,
    folder: Path,
    step: int,
    identity: dict[str, Any],
    keep: int,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write folder/step-… after `step` and drop all but the newest `keep`. Every rank must call it.

    `step` is the caller's count, another one each time: what is whole is never written again. `identity` is what
    decides the run's course (data, batches, schedule); `resume` refuses another one. `extra` is
    state of the caller's own (JSON), for `read_extra`.
    """
    ranks = engine.ranks
    temporary, final = folder / f".step-{step:08d}.tmp", folder / f"step-{step:08d}"
    with writing(final, temporary, "free space; the run resumes before it"):
        if ranks.is_main:
            for left_over in folder.glob(".step-*.tmp"):
                shutil.rmtree(left_over)
            temporary.mkdir(parents=True)
        ranks.barrier()
        engine.deepspeed.save_checkpoint(
            str(temporary), tag="deepspeed", save_latest=False, exclude_frozen_parameters=True
        )
        torch.save(_random_state(), temporary / f"random-{ranks.rank}.pt")
        ranks.barrier()
        if ranks.is_main:
            if extra is not None:
                (temporary / _EXTRA).write_text(json.dumps(extra), encoding="utf-8")
            _finish(temporary, {"step": step, "identity": identity, "files": _sizes(temporary)})
            if final.exists():  # one that was passed over
                shutil.rmtree(final)
            os.replace(temporary, final)
            for old in _whole(folder)[:-keep]:
                shutil.rmtree(old)
        ranks.barrier()


@contextmanager
def writing(path: Path, temporary: Path, way_out: str) -> Iterator[None]:
    """Raise CheckpointError where `path` cannot be written. Of `temporary`, which is to take its place, nothing stays
    behind. On a full disk torch and safetensors raise errors of their own."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # the source of torch's writer
            raise
        raise CheckpointError(f"{path}: cannot be written ({error}); {way_out}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def resume(engine: Engine, folder: Path, identity: dict[str, Any]) -> int:
    """Continue from the newest whole checkpoint, if any; returns its step, 0 without one."""
    ranks = engine.ranks
    path = ranks.gather(newest(folder) if ranks.is_main else None)[0]
    if ranks.is_main:
        for bad in sorted(set(folder.glob("step-*")) - set(_whole(folder))):
            if path is None or bad > path:
                print(f"{bad}: is not whole, so it is passed over", flush=True)
    if path is None:
        return 0
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    differing = [
        f"{key} ({state['identity'].get(key)!r} there, {identity.get(key)!r} here)"
        for key in sorted(state["identity"].keys() | identity.keys())
        if state["identity"].get(key) != identity.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{path}: belongs to a run with another {', '.join(differing)}; set these back, or choose another output"
        )
    engine.deepspeed.load_checkpoint(str(path), tag="deepspeed", load_module_strict=False)
    _set_random_state(torch.load(path / f"random-{ranks.rank}.pt", weights_only=True))
    return state["step"]


def read_extra(folder: Path) -> dict[str, Any] | None:
    """What the caller gave to `save` with the newest whole checkpoint."""
    path = newest(folder)
    if path is None or not (path / _EXTRA).is_file():
        return None
    return json.loads((path / _EXTRA).read_text(encoding="utf-8"))


def steps_done(folder: Path) -> int:
    """Step of the newest whole checkpoint; 0 without one."""
    path = newest(folder)
    return 0 if path is None else json.loads((path / _STATE).read_text(encoding="utf-8"))["step"]


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    whole = _whole(folder)
    return whole[-1] if whole else None


def _whole(folder: Path) -> list[Path]:
    """Checkpoints that hold every file as it was written, oldest first: a crash can leave one with files cut off."""
    return sorted(path for path in folder.glob("step-*") if _is_whole(path))


def _is_whole(path: Path) -> bool:
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return state["files"] == _sizes(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _STATE)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def _finish(folder: Path, state: dict[str, Any]) -> None:
    """The list of files comes last, after all of them have reached the disk."""
    (folder / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    for path in folder.rglob("*"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
