"""Send a run's metrics to Weights & Biases, MLflow, SwanLab or Trackio without blocking the run.

    check_tracker("wandb", "tracker")                        # SetupError if the package is not installed
    tracker = Tracker("wandb", folder, settings, resumes=True)
    tracker.log({"train/loss": 0.5}, step=3)                 # returns immediately
    tracker.close()

Each tracker is called from a separate thread, so a missing network neither delays nor ends a run; only the first error
is printed. It stays offline unless the user has logged in or set its environment variables. The id of the tracker's run
is stored in tracker.json in the run folder, so that a resumed run continues it.
"""

from __future__ import annotations

import importlib
import json
import netrc
import os
import queue
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from mmprm.errors import MmprmError, SetupError
from mmprm.files import parse_json, whole_file

TrackerName = Literal["wandb", "mlflow", "swanlab", "trackio"]
"""Name of an experiment tracker to which a run can log in addition to TensorBoard."""

PROJECT = "mmprm"
RUN_FILE = "tracker.json"
CLOSE_SECONDS = 60.0
"""Maximum time in seconds that a finished run waits for the tracker to process the remaining metrics."""
MAX_WAITING = 100_000
"""Maximum number of queued log entries; further entries are dropped."""


def check_tracker(name: TrackerName | None, key: str) -> None:
    """Raise SetupError if the tracker's package is not installed. `key` names the setting for the error message."""
    if name is not None and name not in sys.modules and find_spec(name) is None:
        raise SetupError(
            f"{key}={name} needs the package {name}, which is not installed; run `pip install {name}`, or leave {key} "
            "out"
        )


class Tracker:
    """Logs metrics to the tracker `name` from a background thread. `settings` are logged as the run's configuration.

    If the run in `folder` is resumed and was logged to the same tracker before, the tracker's run is resumed too.
    """

    def __init__(self, name: TrackerName, folder: Path, settings: Mapping[str, Any], resumes: bool) -> None:
        self._name = name
        self._waiting: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self._has_failed = False
        run = _TrackedRun(_run_id(name, folder, resumes), folder.resolve(), json.loads(json.dumps(settings)))
        self._thread = threading.Thread(target=self._work, args=(run,), name=name, daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue the metrics of a step for logging. They are dropped if the tracker fails to start or is too slow."""
        if self._thread.is_alive() and self._waiting.qsize() < MAX_WAITING:
            self._waiting.put((dict(metrics), step))

    def close(self) -> None:
        """Finish the tracker's run, waiting at most CLOSE_SECONDS."""
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._report(TimeoutError(f"it has not stored everything within {CLOSE_SECONDS:.0f} s"))

    def _work(self, run: _TrackedRun) -> None:
        try:
            sink = OPENERS[self._name](run)
        except BaseException as error:  # packages may raise SystemExit, for example if the user is not logged in
            self._report(error)
            return
        while (entry := self._waiting.get()) is not None:
            self._guarded(lambda entry=entry: sink.log(*entry))
        self._guarded(sink.finish)

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._report(error)

    def _report(self, error: BaseException) -> None:
        if not self._has_failed:
            text = str(error) or type(error).__name__
            print(
                f"tracker={self._name}: {text}; the run continues, and its own files are complete",
                file=sys.stderr,
                flush=True,
            )
        self._has_failed = True


@dataclass(frozen=True, slots=True)
class _TrackedRun:
    """Holds the id, folder and settings of a run for a tracker. `id` remains the same when the run is resumed."""

    id: str
    folder: Path
    settings: dict[str, Any]


class Sink(NamedTuple):
    """Holds the functions of a tracker that log a step's metrics and finish the run."""

    log: Callable[[dict[str, float], int], Any]
    finish: Callable[[], Any]


def _open_wandb(run: _TrackedRun) -> Sink:
    wandb = importlib.import_module("wandb")
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", run.folder.name),
        id=run.id,
        resume="allow",
        dir=str(run.folder),
        mode=os.environ.get("WANDB_MODE") or ("online" if _logged_in_to_wandb() else "offline"),
        config=run.settings,
        # Without a limit, finish() blocks for as long as the network is down.
        settings=wandb.Settings(console="off", finish_timeout=CLOSE_SECONDS),
    )
    return Sink(lambda metrics, step: opened.log(metrics, step=step), opened.finish)


def _logged_in_to_wandb() -> bool:
    """Return whether a W&B API key is set in WANDB_API_KEY or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _open_mlflow(run: _TrackedRun) -> Sink:
    mlflow = importlib.import_module("mlflow")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    client = mlflow.MlflowClient(uri or f"sqlite:///{run.folder / 'mlflow.db'}")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = None if uri else (run.folder / "mlflow").as_uri()
        number = client.create_experiment(name, artifact_location=artifacts)
    else:
        number = experiment.experiment_id
    found = client.search_runs([number], filter_string=f"tags.mmprm_run = '{run.id}'", max_results=1)
    if found:
        opened = found[0].info.run_id
        client.update_run(opened, status="RUNNING")
    else:
        opened = client.create_run(number, tags={"mmprm_run": run.id}, run_name=run.folder.name).info.run_id
        for key, value in _flat(run.settings).items():
            client.log_param(opened, key, value[:500])

    def log(metrics: dict[str, float], step: int) -> None:
        now = mlflow.utils.time.get_current_time_millis()
        entities = [mlflow.entities.Metric(key, value, now, step) for key, value in metrics.items()]
        client.log_batch(opened, metrics=entities)

    return Sink(log, lambda: client.set_terminated(opened))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys with text values, as MLflow's parameters require."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _open_swanlab(run: _TrackedRun) -> Sink:
    swanlab = importlib.import_module("swanlab")
    logged_in = swanlab.Settings().api_key is not None
    folder = run.folder / "swanlog"
    folder.mkdir(exist_ok=True)
    opened = swanlab.init(
        project=os.environ.get("SWANLAB_PROJ_NAME", PROJECT),
        name=os.environ.get("SWANLAB_EXP_NAME", run.folder.name),
        id=run.id,
        resume="allow",
        log_dir=str(folder),
        mode=os.environ.get("SWANLAB_MODE") or ("online" if logged_in else "offline"),
        config=run.settings,
    )
    return Sink(lambda metrics, step: opened.log(metrics, step=step), opened.finish)


def _open_trackio(run: _TrackedRun) -> Sink:
    trackio = importlib.import_module("trackio")
    opened = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=f"{run.folder.name}-{run.id}",  # Trackio identifies runs by name
        resume="allow",
        config=run.settings,
        embed=False,
    )
    return Sink(lambda metrics, step: opened.log(metrics, step=step), opened.finish)


OPENERS: dict[TrackerName, Callable[[_TrackedRun], Sink]] = {
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "swanlab": _open_swanlab,
    "trackio": _open_trackio,
}
"""Functions that start or resume a run, one per tracker."""


def _run_id(name: TrackerName, folder: Path, resumes: bool) -> str:
    """Return the id of this run in the tracker; create and store a new id if there is none to resume."""
    path = folder / RUN_FILE
    if resumes and path.is_file():
        try:
            stored = parse_json(path.read_bytes(), str(path))
            if stored["tracker"] == name:
                return str(stored["id"])
        except (MmprmError, OSError, LookupError, TypeError):
            print(f"{path}: is damaged; a new run of the tracker begins", file=sys.stderr, flush=True)
    run_id = uuid.uuid4().hex[:8]
    with whole_file(path) as file:
        file.write(json.dumps({"tracker": name, "id": run_id}) + "\n")
    return run_id
