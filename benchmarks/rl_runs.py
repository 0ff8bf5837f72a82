"""Run `mmprm rl` by name for the parts of the RL benchmark, and reuse the runs that have finished.

    bench = Bench(folder, FULL)
    bench.finish([Run("long", "outcome", seed=0)])
    rows = bench.rows(Run("long", "outcome", seed=0))     # those of metrics.jsonl

A run is `mmprm rl` with configs/rl/tiny.yaml and overridden keys, in a separate process. It is finished once done.json
has been written with the same keys; a run that was interrupted, or whose keys have changed, starts over.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rl_levels import LEVELS, ROOT, Level, Sizes

Results = dict[str, Any]
PRM_KEY = "process.scorer.prm"
PRM = "the level's PRM"
"""Placeholder for the path of the level's PRM in the keys of a run."""
FAILED = 2
"""Exit code of mmprm if, for example, training cannot continue. A signal or a crash has another one."""


@dataclass(frozen=True)
class Run:
    """Describes a run: its level, name, and seed, and the keys that differ from those of all runs of the level.

    If `may_end_early`, an error that mmprm reports after the first step is a result, such as a loss that is not finite.
    Otherwise, and if the run was stopped or has crashed, an end before the last step is an error.
    """

    level: str
    name: str
    seed: int
    sets: Mapping[str, Any] = field(default_factory=dict, hash=False)
    may_end_early: bool = False

    @property
    def label(self) -> str:
        return f"{self.level}/{self.name}-{self.seed}"


@dataclass(frozen=True)
class Part:
    """Describes a part of the benchmark: the runs that it needs, and the function that measures them.

    `runs` is called again whenever the runs that it returned have finished, because it may choose further runs by their
    results. `bar` is the target in words and as a predicate on the results.
    """

    runs: Callable[[Bench], list[Run]]
    measure: Callable[[Bench], Results]
    bar: tuple[str, Callable[[Results], bool]] = ("reported", lambda results: True)


class Bench:
    """Executes runs in a folder, and holds the files of the results.

    `results` is the file of the results, and `figures` the folder of the figures. `execute` runs a command and returns
    its exit code; tests replace it.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Sizes,
        results: Path | None = None,
        figures: Path | None = None,
        execute: Callable[[list[str], Path], int] | None = None,
    ) -> None:
        self.folder, self.sizes, self._execute = folder, sizes, execute or _execute
        self.results, self.figures = results or folder / "rl.json", figures or folder

    def level(self, name: str) -> Level:
        """Return the files of a level."""
        return Level(self.folder / name, LEVELS[name], self.sizes, self._execute)

    def path(self, run: Run) -> Path:
        """Return the output folder of a run."""
        return self.folder / run.label

    def is_done(self, run: Run) -> bool:
        """Return whether a run has finished with the same keys."""
        return self._done(run).get("sets") == self._sets(run)

    def finish(self, runs: Iterable[Run]) -> None:
        """Execute the runs that have not finished."""
        for run in runs:
            if not self.is_done(run):
                self.level(run.level).prepare(with_prm=PRM_KEY in run.sets)
                self._start_over(run)

    def rows(self, run: Run) -> list[Results]:
        """Return the metrics of a finished run, even if it ended with an error."""
        return [json.loads(line) for line in (self.path(run) / "metrics.jsonl").read_text().splitlines()]

    def seconds(self, run: Run) -> float:
        """Return the wall-clock time of a finished run, or the median of the finished runs of its level.

        If none has finished, returns the level's estimate.
        """
        if self.is_done(run):
            return self._done(run)["seconds"]
        finished = [json.loads(path.read_text())["seconds"] for path in self.folder.glob(f"{run.level}/*/done.json")]
        return median(finished) if finished else 60 * LEVELS[run.level].minutes

    def _done(self, run: Run) -> Results:
        path = self.path(run) / "done.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _is_result(self, run: Run, code: int) -> bool:
        """Return whether a run was evaluated after its last step, or ended with a result before that."""
        rows = self.rows(run) if (self.path(run) / "metrics.jsonl").exists() else []
        last = int(self._sets(run)["steps"])
        if any(row["kind"] == "eval" and row["step"] == last for row in rows):
            return True
        return run.may_end_early and code == FAILED and any(row["kind"] == "train" for row in rows)

    def _sets(self, run: Run) -> Results:
        level = self.level(run.level)
        sets = level.sets() | {"seed": run.seed} | dict(run.sets)
        return {key: str(level.prm if value == PRM else value) for key, value in sets.items()}

    def _start_over(self, run: Run) -> None:
        output = self.path(run)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        command = ["rl", "--config", str(ROOT / "configs" / "rl" / "tiny.yaml"), "--set", f"output={output}"]
        command += [part for key, value in self._sets(run).items() for part in ("--set", f"{key}={value}")]
        began = time.perf_counter()
        code = self._execute(command, self.folder / f"{run.label}.log")
        if not self._is_result(run, code):
            raise RuntimeError(
                f"{run.label} ended with exit code {code} before its last step; see {output}.log, and run the same "
                "command again"
            )
        # Written last, so that an interrupted run is not taken for a finished one.
        done = {"sets": self._sets(run), "code": code, "seconds": time.perf_counter() - began}
        (output / "done.json").write_text(json.dumps(done, indent=2))
        for part in ("checkpoints", "policy"):  # nothing reads them
            shutil.rmtree(output / part, ignore_errors=True)


def _execute(command: list[str], log: Path) -> int:
    """Run an mmprm command and return its exit code; what it prints goes to `log`."""
    print(f"{time.strftime('%H:%M:%S')}  {log.stem}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.run(
            [sys.executable, "-m", "mmprm", *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        ).returncode


def status(bench: Bench, parts: Mapping[str, Part]) -> str:
    """Return a table of the parts: how many of the runs known so far have finished, and how long the rest will take."""
    lines, left = [], 0.0
    counted: set[str] = set()
    for name, part in parts.items():
        runs = part.runs(bench)
        missing = [run for run in runs if not bench.is_done(run)]
        own = sum(bench.seconds(run) for run in missing if run.label not in counted)
        counted |= {run.label for run in missing}
        left += own
        following = f"; next {missing[0].label}" if missing else ""
        lines.append(f"{name:<14}{len(runs) - len(missing):>3} of {len(runs):<3}  {own / 60:>5.0f} min left{following}")
    return "\n".join([*lines, f"{'total':<28}{left / 60:>5.0f} min left, without vs_trl and the preparation of levels"])
