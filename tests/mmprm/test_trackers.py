"""Test trackers with small stand-ins that have the signatures of the real packages."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from mmprm import trackers
from mmprm.config import load
from mmprm.errors import SetupError
from mmprm.trackers import Tracker, TrackerName, check_tracker
from mmprm.training.config import TrainingConfig
from mmprm.training.metrics_log import MetricsLog

KEYS = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "SWANLAB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_PROJECT")
SETTINGS = {"training": {"learning_rate": 1e-5, "betas": (0.9, 0.95)}, "lora": None}


class FakeRun:
    """Stands in for a run of wandb, swanlab or trackio, with `log(data, step=…)` and `finish()`."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments, self.logged, self.finished = arguments, [], False

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, data))

    def finish(self) -> None:
        self.finished = True


class FakeClient:
    """Stands in for MLflow's client, with explicit run ids and no active run."""

    stores: ClassVar[dict[str, list[dict[str, Any]]]] = {}

    def __init__(self, tracking_uri: str) -> None:
        self.runs = self.stores.setdefault(tracking_uri, [])

    def get_experiment_by_name(self, name: str) -> Any:
        return None if not self.runs else SimpleNamespace(experiment_id="7")

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        return "7"

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        found = [run for run in self.runs if filter_string == f"tags.mmprm_run = '{run['tag']}'"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run["id"])) for run in found]

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        self.runs.append({"id": f"run-{len(self.runs)}", "tag": tags["mmprm_run"], "params": {}, "metrics": []})
        return SimpleNamespace(info=SimpleNamespace(run_id=self.runs[-1]["id"]))

    def _run(self, run_id: str) -> dict[str, Any]:
        return next(run for run in self.runs if run["id"] == run_id)

    def update_run(self, run_id: str, status: str) -> None:
        self._run(run_id)["status"] = status

    def log_param(self, run_id: str, key: str, value: str) -> None:
        self._run(run_id)["params"][key] = value

    def log_batch(self, run_id: str, metrics: list[tuple[str, float, int, int]]) -> None:
        self._run(run_id)["metrics"] += [(key, value, step) for key, value, _, step in metrics]

    def set_terminated(self, run_id: str) -> None:
        self._run(run_id)["status"] = "FINISHED"


def fake(name: str, runs: list[FakeRun]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(arguments))
        return runs[-1]

    module.init = init
    module.Settings = lambda **keys: SimpleNamespace(api_key=None, **keys)
    module.MlflowClient = FakeClient
    module.entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, timestamp, step))
    module.utils = SimpleNamespace(time=SimpleNamespace(get_current_time_millis=lambda: 1))
    return module


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakeRun]:
    """Install the stand-ins on a machine without logins, and return the runs that they open."""
    opened: list[FakeRun] = []
    for name in ("wandb", "mlflow", "swanlab", "trackio"):
        monkeypatch.setitem(sys.modules, name, fake(name, opened))
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    FakeClient.stores.clear()
    return opened


def track(name: TrackerName, folder: Path, steps: tuple[int, ...] = (1, 2), resumes: bool = False) -> None:
    tracker = Tracker(name, folder, SETTINGS, resumes)
    for step in steps:
        tracker.log({"train/loss": 1 / step}, step)
    tracker.close()


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_every_step_reaches_the_tracker(name: TrackerName, runs: list[FakeRun], tmp_path: Path) -> None:
    track(name, tmp_path / "mine")
    (run,) = runs
    assert run.logged == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5})]
    assert run.finished
    assert run.arguments["project"] == "mmprm"
    assert run.arguments["name"].startswith("mine")
    assert run.arguments["config"] == {"training": {"learning_rate": 1e-5, "betas": [0.9, 0.95]}, "lora": None}


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_offline_without_a_login(
    name: TrackerName, runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(name, tmp_path)
    monkeypatch.setenv(f"{name.upper()}_MODE", "online")
    track(name, tmp_path)
    assert [run.arguments["mode"] for run in runs] == ["offline", "online"]


def test_wandb_is_online_after_a_login(runs: list[FakeRun], tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    track("wandb", tmp_path)
    assert runs[0].arguments["mode"] == "online"


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_a_resumed_run_continues_the_trackers_run(name: TrackerName, runs: list[FakeRun], tmp_path: Path) -> None:
    track(name, tmp_path)
    track(name, tmp_path, (3,), resumes=True)
    track(name, tmp_path)
    first, resumed, other = [(run.arguments["name"], run.arguments.get("id")) for run in runs]
    assert first == resumed != other
    assert {run.arguments["resume"] for run in runs} == {"allow"}


def test_mlflow_logs_to_a_file_in_the_run_folder(runs: list[FakeRun], tmp_path: Path) -> None:
    track("mlflow", tmp_path)
    track("mlflow", tmp_path, (3,), resumes=True)
    ((uri, (run,)),) = FakeClient.stores.items()
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert run["metrics"] == [("train/loss", 1.0, 1), ("train/loss", 0.5, 2), ("train/loss", 1 / 3, 3)]
    assert run["params"]["training.learning_rate"] == "1e-05"
    assert run["status"] == "FINISHED"


def test_mlflow_respects_the_users_server(runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    track("mlflow", tmp_path)
    assert list(FakeClient.stores) == ["http://mlflow:5000"]


def test_errors_are_printed_once_and_later_steps_are_tried(
    runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def log(self: FakeRun, data: dict[str, float], step: int) -> None:
        if step < 3:
            raise ConnectionError("no route to host")
        self.logged.append((step, data))

    monkeypatch.setattr(FakeRun, "log", log)
    track("wandb", tmp_path, (1, 2, 3))
    assert runs[0].logged == [(3, {"train/loss": 1 / 3})]
    assert capsys.readouterr().err == (
        "tracker=wandb: no route to host; the run continues, and its own files are complete\n"
    )


def test_a_tracker_that_does_not_start_ends_nothing(
    runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> FakeRun:
        raise SystemExit("no login")

    monkeypatch.setattr(sys.modules["swanlab"], "init", init)
    track("swanlab", tmp_path)
    assert "tracker=swanlab: no login; the run continues" in capsys.readouterr().err


def test_a_tracker_that_hangs_delays_nothing(
    runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(FakeRun, "log", lambda *_, **__: hangs.wait(60))
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    started = time.monotonic()
    track("trackio", tmp_path)
    assert time.monotonic() - started < 30
    assert "has not stored everything" in capsys.readouterr().err
    hangs.set()


def test_a_missing_package_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "swanlab", raising=False)
    with pytest.raises(SetupError, match=r"training.tracker=swanlab needs .* `pip install swanlab`, or leave"):
        check_tracker("swanlab", "training.tracker")
    check_tracker(None, "tracker")


def test_the_metrics_log_sends_both_kinds(runs: list[FakeRun], tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, load(TrainingConfig, None, ["tracker=wandb"]).tracker, {"seed": 1})
    log.write("train", 1, {"loss": 2.0}, shown=False, total=1)
    log.write("eval", 1, {"auc": 0.5}, shown=False, total=1)
    log.close()
    assert runs[0].logged == [(1, {"train/loss": 2.0}), (1, {"eval/auc": 0.5})]
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}
