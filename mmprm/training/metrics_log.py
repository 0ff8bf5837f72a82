"""Log the metrics of every step to metrics.jsonl, TensorBoard and a tracker, and those of some steps to the console.

Used on rank 0 only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmprm.errors import TrainingError
from mmprm.files import logged_rows, whole_file
from mmprm.trackers import Tracker, TrackerName

SETTINGS_FILE = "settings.json"


class MetricsLog:
    """Writes metrics to metrics.jsonl and TensorBoard, and sends them to `tracker` if one is set.

    When a run is resumed, the entries after its checkpoint are dropped, so each step appears once. `evaluated` holds
    the steps that already have an evaluation. `settings` are stored as settings.json, and the tracker shows them as the
    run's configuration.
    """

    def __init__(
        self,
        folder: Path,
        done: int,
        tracker: TrackerName | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "metrics.jsonl"
            rows = logged_rows(path, ("kind",)) if path.exists() else ()
            kept = [row for row in rows if row["step"] <= done]
            self.evaluated = {row["step"] for row in kept if row["kind"] == "eval"}
            with whole_file(path, error=TrainingError, way_out="choose another output") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)
            if settings:
                with whole_file(folder / SETTINGS_FILE, error=TrainingError, way_out="choose another output") as file:
                    file.write(json.dumps(dict(settings), indent=2, ensure_ascii=False) + "\n")
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written ({error}); choose another output") from error
        self._tracker = Tracker(tracker, folder, settings, resumes=done > 0) if tracker else None

    def write(self, kind: str, step: int, metrics: dict[str, float], shown: bool, total: int) -> None:
        """Log metrics of `kind` (train or eval) after `step` updates; metrics.jsonl stores non-finite values as null.

        `shown` also prints them to the console.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._tracker:
            self._tracker.log({f"{kind}/{name}": value for name, value in metrics.items()}, step)
        if shown:
            values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"{kind} {step}/{total}  {values}", flush=True)

    def close(self) -> None:
        """Close the files, and finish the tracker's run."""
        self._file.close()
        self._board.close()
        if self._tracker:
            self._tracker.close()
