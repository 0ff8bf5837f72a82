"""Save and load training checkpoints: model, optimizer, learning rate schedule, step and random state.

An incomplete or damaged checkpoint is skipped in favor of an older one. Checkpoints are DeepSpeed's own files, which
are pickles: resume only from checkpoints that you trust. They do not contain frozen weights, which come from the base
model of the run.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mmprm.config import differing_keys, with_current_names
from mmprm.errors import CheckpointError, DataError
from mmprm.files import digest_of, digests, parse_json, remove_folder, whole_file
from mmprm.training.engine import Engine

_STATE, _EXTRA = "state.json", "extra.json"
_LATER_KEYS = {"learning_rate_decay": "cosine"}
"""Settings that older checkpoints do not record, with the values that the older runs used."""
BEST = "best"
"""Name of the symbolic link that points to the checkpoint with the best evaluation."""


def save(
    engine: Engine,
    folder: Path,
    step: int,
    resume_key: dict[str, Any],
    keep: int,
    extra: dict[str, Any] | None = None,
) -> None:
    """Save a checkpoint as folder/step-…, and delete all checkpoints except the newest `keep` and the best one.

    Every rank must call it.

    Args:
        step: Number of finished steps; must differ between calls, because a complete checkpoint is never rewritten.
        resume_key: Settings that determine the run (data, batches, schedule); `resume` requires the same ones.
        extra: JSON state of the caller for `read_extra`.
    """
    ranks = engine.ranks
    temporary, final = folder / f".step-{step:08d}.tmp", folder / f"step-{step:08d}"
    try:
        with writing(
            final, "free some disk space and run the same command again; the run resumes from the previous checkpoint"
        ):
            if ranks.is_main:
                for left_over in (*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")):  # from a killed run
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
                _finish(temporary, {"step": step, "identity": resume_key, "ranks": ranks.count})
                if final.exists():  # a damaged checkpoint that was skipped on resume
                    remove_folder(final)
                os.replace(temporary, final)
                best = (folder / BEST).resolve()
                for old in _complete(folder)[:-keep]:
                    if old.resolve() != best:
                        remove_folder(old)
            ranks.barrier()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(path: Path, way_out: str) -> Iterator[None]:
    """Convert errors raised while writing `path` to CheckpointError; `way_out` tells the user what to do.

    On a full disk, torch and safetensors raise their own exception types instead of OSError.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Errors of torch's writer name its source file; any other RuntimeError is unrelated to writing.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise CheckpointError(f"{path}: cannot be written ({error}); {way_out}") from error


def resume(
    engine: Engine,
    folder: Path,
    resume_key: dict[str, Any],
    updated: Callable[[dict[str, Any]], dict[str, Any]] = lambda stored: stored,
) -> int:
    """Load the newest complete checkpoint and return its step, or 0 if there is no checkpoint.

    `updated` converts the resume key of an older version to the current form.
    """
    ranks = engine.ranks
    path = ranks.gather(newest(folder) if ranks.is_main else None)[0]
    if ranks.is_main:
        for bad in sorted(folder.glob("step-*")):
            if path is None or bad > path:
                print(f"{bad}: {_fault(bad)}; skipping it", flush=True)
    if path is None:
        return 0
    state = _state(path)
    stored = {key: value for key, value in _LATER_KEYS.items() if key in resume_key} | updated(state["identity"])
    differing = differing_keys(stored, resume_key)
    if differing:
        shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
        raise CheckpointError(
            f"{path}: belongs to a run with different settings: {shown}; restore them or choose another output"
        )
    written_by = len(list(path.glob("random-*.pt")))
    if written_by != ranks.count:
        raise CheckpointError(
            f"{path}: was written by {written_by} rank{'s' * (written_by != 1)}, but this run has {ranks.count}; start "
            f"{written_by} ranks, or choose another output"
        )
    try:
        engine.deepspeed.load_checkpoint(str(path), tag="deepspeed", load_module_strict=False)
        _set_random_state(torch.load(path / f"random-{ranks.rank}.pt", weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(
            f"{path}: does not match this run ({type(error).__name__}: {error}); choose another output, or remove it "
            "to resume from the previous checkpoint"
        ) from error
    return state["step"]


def read_extra(folder: Path) -> dict[str, Any] | None:
    """Return the `extra` state saved with the newest complete checkpoint, or None if there is no checkpoint."""
    path = newest(folder)
    if path is None or not (path / _EXTRA).is_file():
        return None
    extra = parse_json((path / _EXTRA).read_bytes(), str(path / _EXTRA), CheckpointError)
    if not isinstance(extra, dict):
        raise CheckpointError(
            f"{path / _EXTRA}: must be a JSON object; remove {path} to resume from the previous checkpoint"
        )
    return extra


def steps_done(folder: Path) -> int:
    """Return the step of the newest complete checkpoint, or 0 if there is no checkpoint."""
    path = newest(folder)
    return 0 if path is None else _state(path)["step"]


def newest(folder: Path) -> Path | None:
    """Return the newest complete and undamaged checkpoint, or None if there is no such checkpoint.

    Crashes can truncate files, and disks can corrupt them.
    """
    return next((path for path in reversed(_complete(folder)) if _fault(path) is None), None)


def offer_best(folder: Path, step: int, value: float, higher: bool) -> None:
    """Point the link folder/best at the checkpoint of `step` if its evaluation is the best so far.

    `value` is the evaluation's metric; larger is better if `higher` is set. Nothing changes if `step` has no
    checkpoint. Only one rank may call it.
    """
    target, link, record = folder / f"step-{step:08d}", folder / BEST, folder / f"{BEST}.json"
    if not target.is_dir():
        return
    try:
        before = float(parse_json(record.read_bytes(), str(record))["value"]) if link.is_dir() else None
    except (OSError, DataError, ValueError, KeyError, TypeError):
        before = None
    if before is not None and (before >= value if higher else before <= value):
        return
    with whole_file(record, error=CheckpointError) as file:
        json.dump({"step": step, "value": value}, file)
    temporary = folder / f".{BEST}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, link)


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint or a run folder that contains checkpoints."""
    return any((folder / _STATE).is_file() or any(folder.glob("step-*")) for folder in (path, path / "checkpoints"))


def read_checkpoint(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and state of a complete checkpoint or, for a run folder, of its newest one.

    Raises CheckpointError if there is none.
    """
    if not (path / _STATE).is_file():
        path = newest(path / "checkpoints" if (path / "checkpoints").is_dir() else path) or path
    path = path.resolve()  # checkpoints/best is a link
    fault = _fault(path)
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}; give another checkpoint")
    state = _state(path)
    assert state is not None, "a whole checkpoint has its state"
    return path, state


def trained_weights(path: Path) -> dict[str, torch.Tensor]:
    """Load the trained weights of a checkpoint as full tensors, regardless of the number of ranks and the ZeRO stage.

    Frozen weights are not included. The files are pickles: read only checkpoints that you trust.
    """
    folder = path / "deepspeed"
    whole = folder / "mp_rank_00_model_states.pt"
    if whole.is_file():  # up to stage 2, each rank has all weights
        return torch.load(whole, map_location="cpu", weights_only=False)["module"]
    import contextlib
    import io

    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its progress
        return get_fp32_state_dict_from_zero_checkpoint(str(path), "deepspeed", exclude_frozen_parameters=True)


def _complete(folder: Path) -> list[Path]:
    """Return the checkpoints in which all files have their recorded sizes, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _same_sizes(path))


def _same_sizes(path: Path) -> bool:
    """Return whether the folder contains exactly the recorded files with the recorded sizes."""
    state = _state(path)
    return state is not None and state["files"] == _sizes(path)


def _fault(path: Path) -> str | None:
    """Return a description of the damage to a checkpoint, or None if it is intact."""
    if not _same_sizes(path):
        return "is incomplete"
    text = (path / _STATE).read_text(encoding="utf-8")
    damaged = _damaged_file(path, text, tuple(_times(path)))
    return None if damaged is None else f"{damaged} is damaged"


@lru_cache(maxsize=64)
def _damaged_file(path: Path, state: str, times: tuple[int, ...]) -> str | None:
    """Return the first file whose checksum is wrong, or None if all checksums match.

    Computing checksums takes a while, so the result is cached by the files' modification times. Older checkpoints
    without checksums are accepted as they are.
    """
    values = json.loads(state)
    if "checksum" in values and values.pop("checksum") != digest_of(values):
        return _STATE
    expected = values.get("sha256", {})
    found = digests(path, expected)
    return next((name for name in expected if found[name] != expected[name]), None)


def _state(path: Path) -> dict[str, Any] | None:
    """Read state.json, or return None if it is missing or invalid."""
    try:
        state = parse_json((path / _STATE).read_bytes(), str(path))
        files, resume_key = state["files"], state["identity"]
    except (OSError, DataError, KeyError, TypeError):
        return None
    valid = isinstance(files, dict) and isinstance(resume_key, dict) and type(state.get("step")) is int
    if not valid or not isinstance(state.get("sha256", {}), dict):
        return None
    return state | {"identity": with_current_names(resume_key)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _STATE)


def _sizes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}


def _times(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in _files(folder)]


def _finish(folder: Path, state: dict[str, Any]) -> None:
    """Record the size and checksum of every file in state.json, which is written last, and flush everything to disk."""
    sizes = _sizes(folder)
    state = state | {"files": sizes, "sha256": digests(folder, sizes)}
    state |= {"checksum": digest_of(state)}
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
