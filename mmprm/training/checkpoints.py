"""Checkpoints to resume from: model, optimizer, schedule, step and random state; a folder is whole or not there.

They are DeepSpeed's own files, which are pickles: resume only from checkpoints of your own.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from mmprm.errors import CheckpointError
from mmprm.training.engine import Engine

_STATE = "state.json"


def save(engine: Engine, folder: Path, step: int, identity: dict[str, Any], keep: int) -> None:
    """Write folder/step-… after `step` optimizer steps and drop all but the newest `keep`. Every rank must call it.

    `identity` is what decides the run's course (data, batches, schedule); `resume` refuses another one.
    """
    ranks = engine.ranks
    temporary, final = folder / f".step-{step:08d}.tmp", folder / f"step-{step:08d}"
    try:
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        ranks.barrier()
        engine.deepspeed.save_checkpoint(str(temporary), tag="deepspeed", save_latest=False)
        torch.save(_random_state(), temporary / f"random-{ranks.rank}.pt")
        ranks.barrier()
        if ranks.is_main:
            state = {"step": step, "identity": identity}
            (temporary / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
            os.replace(temporary, final)
            for old in _finished(folder)[:-keep]:
                shutil.rmtree(old)
        ranks.barrier()
    except OSError as error:
        raise CheckpointError(f"{final}: cannot be written ({error}); free space; the run resumes before it") from error


def resume(engine: Engine, folder: Path, identity: dict[str, Any]) -> int:
    """Continue from the newest checkpoint, if any; returns the number of optimizer steps already done."""
    checkpoints = _finished(folder)
    if not checkpoints:
        return 0
    newest = checkpoints[-1]
    state = json.loads((newest / _STATE).read_text(encoding="utf-8"))
    differing = [
        f"{key} ({state['identity'].get(key)!r} there, {identity.get(key)!r} here)"
        for key in sorted(state["identity"].keys() | identity.keys())
        if state["identity"].get(key) != identity.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{newest}: belongs to a run with another {', '.join(differing)}; set these back, or choose another output"
        )
    engine.deepspeed.load_checkpoint(str(newest), tag="deepspeed")
    _set_random_state(torch.load(newest / f"random-{engine.ranks.rank}.pt", weights_only=True))
    return state["step"]


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
