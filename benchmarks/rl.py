"""Measure reinforcement learning of the built-in policy: `make bench-rl` writes benchmarks/results/rl.json.

rloo_outcome   held-out pass@1 before and after RLOO with outcome rewards alone, for three seeds, and the smallest gain
cpgd_outcome   CPGD against RLOO with PPO clipping, at eight updates per rollout: pass@1, and the number of runs that
               collapse as the learning rate increases (pass@1 below half of its initial value, or not finite)
prm_speedup    steps to the final accuracy of outcome rewards alone, relative to outcome and process rewards
overhead       fraction of a step spent outside generation, scoring, forward, backward and optimizer
sync           fraction of a step spent on weight transfer
vs_trl         seconds per step relative to TRL's RLOO trainer with default settings; per step and update when tuned

Each run is `mmprm rl` with configs/rl/tiny.yaml and overridden keys, in a separate process. Its metrics.jsonl stays in
the working folder, so an interrupted benchmark resumes with the missing runs. prm_speedup uses the process reward model
of a demo run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from mmprm.problems import write_problems
from mmprm.tiny.world import make_problems

ROOT = Path(__file__).parent.parent
PRM = ROOT / "runs" / "demo" / "train" / "prm"
SEEDS = (0, 1, 2)
HELD_OUT = 300
STEPS = 40
EVERY = 5
"""Number of steps between evaluations in runs that measure how many steps it takes to reach an accuracy."""
RATE = 3e-4
UPDATES = 8
MANY_UPDATES_RATE = 1e-4
"""Learning rate of runs with UPDATES updates per rollout."""
RATES = (3e-4, 6e-4, 1e-3, 3e-3)
"""Learning rates of the stability trials, tried with all seeds until PPO clipping collapses for two seeds."""

Results = dict[str, Any]
BARS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rloo_outcome": ("min_gain at least 0.15", lambda r: r["min_gain"] >= 0.15),
    "cpgd_outcome": (
        "CPGD not below RLOO beyond its interval, and collapses in fewer seeds",
        lambda r: r["cpgd"] >= r["rloo_low"] and r["collapsed_cpgd"] < r["collapsed_ppo_clip"],
    ),
    "prm_speedup": ("reported; aim 1.5", lambda r: True),
    "overhead": ("share at most 0.10", lambda r: r["share"] <= 0.10),
    "sync": ("share at most 0.05", lambda r: r["share"] <= 0.05),
    "vs_trl": (
        "ratio at most 0.25, update_ratio at most 1.0",
        lambda r: r["ratio"] <= 0.25 and r["update_ratio"] <= 1.0,
    ),
}


class Runs:
    """Runs `mmprm rl` on the same problems, and reuses finished runs by name from one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for split, count, seed in (("train", 3200, 50), ("test", HELD_OUT, 3000)):
            if not self.problems(split).exists():
                folder.mkdir(parents=True, exist_ok=True)
                made = make_problems(count, seed, split)
                write_problems(self.problems(split), [tiny.problem for tiny in made])

    def __call__(self, name: str, seed: int, **sets: Any) -> list[Results]:
        """Run `mmprm rl` unless it has finished; return its metrics.jsonl rows, even if it ended with an error."""
        output = self._folder / f"{name}-{seed}"
        done, metrics = output / "done", output / "metrics.jsonl"
        if not done.exists():
            fixed = {
                "output": output,
                "problems.path": self.problems("train"),
                "held_out.path": self.problems("test"),
                "seed": seed,
                "steps": STEPS,
                "eval_every": STEPS,
                "save_every": 0,
            }
            command = [sys.executable, "-m", "mmprm", "rl", "--config", str(ROOT / "configs" / "rl" / "tiny.yaml")]
            values = {**fixed, "trainer.optimization.learning_rate": RATE, **sets}
            command += [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
            ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            assert metrics.exists(), ended.stderr[-2000:]
            # Written last, so that an interrupted run is not taken for a finished one.
            done.write_text(f"{ended.returncode}\n{ended.stderr[-2000:]}")
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    def problems(self, split: str) -> Path:
        return self._folder / f"{split}.jsonl"


def rloo_outcome(runs: Runs) -> Results:
    found = [_evaluations(each) for each in _rloo(runs)]
    before, after = ([each[index]["pass_at_1"] for each in found] for index in (0, -1))
    gains = [after - before for before, after in zip(before, after, strict=True)]
    return {"before": median(before), "after": median(after), "min_gain": min(gains), "gains": gains, "steps": STEPS}


def cpgd_outcome(runs: Runs) -> Results:
    def trial(surrogate: str, rate: float) -> list[list[Results]]:
        sets = {
            "advantage.estimator": {"ppo_clip": "rloo", "cpgd": "cpgd"}[surrogate],
            "trainer.loss.surrogate": surrogate,
            "batch.updates": UPDATES,
            "trainer.optimization.learning_rate": rate,
        }
        return [_evaluations(runs(f"{surrogate}-{rate:g}", seed, **sets)) for seed in SEEDS]

    pair = {name: [each[-1] for each in trial(name, MANY_UPDATES_RATE)] for name in ("ppo_clip", "cpgd")}
    trials: dict[str, dict[str, list[float]]] = {}
    # Raise the learning rate until PPO clipping collapses for two seeds, then compare CPGD at that rate.
    for rate in RATES:
        found = {"ppo_clip": trial("ppo_clip", rate)}
        collapsed = {"ppo_clip": sum(map(_collapsed, found["ppo_clip"])), "cpgd": 0}
        if collapsed["ppo_clip"] >= 2:
            found["cpgd"] = trial("cpgd", rate)
            collapsed["cpgd"] = sum(map(_collapsed, found["cpgd"]))
        trials[f"{rate:g}"] = {name: [each[-1]["pass_at_1"] for each in ended] for name, ended in found.items()}
        if collapsed["ppo_clip"] >= 2:
            break
    return {
        "cpgd": median(end["pass_at_1"] for end in pair["cpgd"]),
        "rloo": median(end["pass_at_1"] for end in pair["ppo_clip"]),
        "rloo_low": median(end["pass_at_1_low"] for end in pair["ppo_clip"]),
        "collapsed_cpgd": collapsed["cpgd"],
        "collapsed_ppo_clip": collapsed["ppo_clip"],
        "learning_rate": rate,
        "trials": trials,
    }


def prm_speedup(runs: Runs) -> Results:
    """Measure how much faster process rewards reach the final accuracy of outcome rewards; None if they never do."""
    outcome = [_evaluations(each) for each in _rloo(runs)]
    process = {"eval_every": EVERY, "process.scorer.prm": PRM}
    both = [_evaluations(runs("process", seed, **process)) for seed in SEEDS]
    ratios = []
    for alone, helped in zip(outcome, both, strict=True):
        goal = alone[-1]["pass_at_1"]
        steps = [next((row["step"] for row in rows if row["pass_at_1"] >= goal), None) for rows in (alone, helped)]
        ratios.append(None if steps[1] is None else steps[0] / steps[1])
    return {
        "ratios": ratios,
        "outcome": [[row["pass_at_1"] for row in rows] for rows in outcome],
        "outcome_and_process": [[row["pass_at_1"] for row in rows] for rows in both],
    }


def overhead(runs: Runs) -> Results:
    return {"share": median(row["overhead"] for row in _steps(runs))}


def sync(runs: Runs) -> Results:
    return {"share": median(row["seconds_sync"] / row["seconds"] for row in _steps(runs))}


def vs_trl(_: Runs) -> Results:
    """Compare with TRL's RLOO trainer. Runs are not reused, because the two trainers must alternate."""
    from rl_trl import step_vs_trl

    with tempfile.TemporaryDirectory(prefix="mmprm-bench-") as folder:
        runs = Runs(Path(folder))
        return step_vs_trl(runs, runs.problems("train"), SEEDS, RATE)


def _steps(runs: Runs) -> Iterator[Results]:
    return (row for rows in _rloo(runs) for row in rows if row["kind"] == "train")


def _rloo(runs: Runs) -> list[list[Results]]:
    return [runs("rloo", seed, eval_every=EVERY) for seed in SEEDS]


def _evaluations(rows: list[Results]) -> list[Results]:
    return [row for row in rows if row["kind"] == "eval"]


def _collapsed(evaluations: list[Results]) -> bool:
    """Return whether a run collapsed. A run without its last evaluation failed and counts as collapsed."""
    before, after = evaluations[0]["pass_at_1"], evaluations[-1]["pass_at_1"]
    return evaluations[-1]["step"] < STEPS or math.isnan(after) or after < before / 2


PARTS: dict[str, Callable[[Runs], Results]] = {
    "rloo_outcome": rloo_outcome,
    "overhead": overhead,
    "sync": sync,
    "vs_trl": vs_trl,
    "prm_speedup": prm_speedup,
    "cpgd_outcome": cpgd_outcome,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=PARTS, help="parts to measure; other results are kept"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-rl", help="folder for the runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "rl.json")
    arguments = parser.parse_args()
    runs = Runs(arguments.work)
    details_path = arguments.output.with_name(f"{arguments.output.stem}_details.json")
    results, details = (json.loads(p.read_text()) if p.exists() else {} for p in (arguments.output, details_path))
    for name in arguments.only:
        results[name] = details[name] = PARTS[name](runs)
        details["bars"] = {key: BARS[key][0] for key in PARTS if key in results}
        details["met"] = {key: bool(BARS[key][1](results[key])) for key in PARTS if key in results}
        details["machine"] = (
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        )
        for path, metrics in ((arguments.output, results), (details_path, details)):
            path.write_text(json.dumps(metrics, indent=2) + "\n")
        print(json.dumps({name: results[name]}, indent=2), "met" if details["met"][name] else "MISSED", flush=True)


if __name__ == "__main__":
    main()
