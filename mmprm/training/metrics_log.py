"""Metrics of a run: every step to metrics.jsonl and TensorBoard, some to the console. Rank 0 only."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mmprm.errors import TrainingError
from mmprm.files import logged_rows, whole_file


class MetricsLog:
    """What a resumed run has logged after its checkpoint is dropped first, so that each step appears once. `evaluated`
    are the steps whose evaluation is there already."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "metrics.jsonl"
            rows = logged_rows(path, ("kind",)) if path.exists() else ()
            kept = [row for row in rows if row["step"] <= done]
            self.evaluated = {row["step"] for row in kept if row["kind"] == "eval"}
            with whole_file(path, error=TrainingError, way_out="choose another output") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written ({error}); choose another output") from error

    def write(self, kind: str, step: int, metrics: dict[str, float], shown: bool, total: int) -> None:
        """`kind` is train or eval; `step` counts finished updates. A value that is not finite is written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if shown:
            values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"{kind} {step}/{total}  {values}", flush=True)

    def close(self) -> None:
        self._file.close()
        self._board.close()
