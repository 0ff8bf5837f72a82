"""Measure reinforcement learning over the turns of Sokoban: `make bench-agents` writes benchmarks/results/agents.json.

mismatch      largest difference between the log-probabilities of engine and trainer, over episodes of 8 turns with
              images, in float32
rl_gain       gain in solve rate on held-out levels with outcome rewards alone, as a mean over the seeds, with its 95%
              interval
sample_ratio  number of episodes after which a method reaches the final solve rate of outcome rewards alone, relative to
              the number that these need; the median over the seeds, for the better of credit from a PRM over turns and
              credit from continuations (tree). GiGPO and the environment's rewards are reported, too. The rollouts on
              which the PRM was trained, 24 for each of the 600 levels, are not counted

The last two parts need a policy that plays: mmprm tiny sokoban-policy --output runs/sokoban/policy. The PRM is that of
`python -m benchmarks.agents_labels --only prm_value`; without it, that method is left out.

    python -m benchmarks.agents [--only mismatch] [--small] [--status]

Each run is `mmprm rl` in a separate process. An interrupted benchmark resumes with the missing runs.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from benchmarks.agents_mismatch import measure_mismatch, write_policy
from benchmarks.parts import ROOT, Part, Results, folder_and_output, parts_parser, run_mmprm, run_parts
from mmprm.problems import write_problems
from mmprm.tiny.sokoban_problems import make_sokoban_problems

CONFIG = ROOT / "configs" / "rl" / "sokoban-tiny.yaml"

CONTINUATIONS = 2
"""Number of continuations of a turn with credit.source=tree."""
METHODS: dict[str, dict[str, Any]] = {
    "outcome": {},
    "environment": {"credit.source": "environment", "rewards.environment_weight": 0.1},
    "gigpo": {"credit.source": "gigpo", "credit.gamma": 0.95},
    "tree": {"credit.source": "tree", "rollouts.branching.continuations": CONTINUATIONS},
    "prm": {"credit.mode": "value", "advantage.lam": 0.8},
}
"""Keys of each method that differ from those of outcome rewards alone; prm also gets the path of its PRM, which scores
how often the policy solves a state, and tree half of the group size, because continuations are episodes, too."""
OWN = ("prm", "tree")
"""Methods of which the better one is compared with GiGPO."""
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Quantiles of Student's t distribution for two-sided 95% intervals, by degrees of freedom."""


@dataclass(frozen=True)
class Sizes:
    """Configures levels, seeds and steps. SMALL runs each part in minutes, to test it."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 36
    every: int = 12
    prompts: int = 16
    group_size: int = 8
    train: int = 600
    held_out: int = 100
    eval_samples: int = 4
    episodes: int = 32
    """Number of episodes of the part mismatch."""


FULL = Sizes()
SMALL = Sizes((0,), 2, 1, 2, 2, 8, 4, 1, 2)


@dataclass(frozen=True)
class Bench:
    """Holds the folder, policy, PRM and sizes of the benchmark. `execute` runs an mmprm command and writes its log."""

    folder: Path
    policy: Path
    prm: Path
    sizes: Sizes
    execute: Callable[[list[str], Path], int]

    def curve(self, method: str, seed: int) -> list[tuple[float, float]]:
        """Return the learning curve of a run as (episodes so far, solve rate), after making the run if necessary."""
        output = self.folder / f"{method}-{seed}"
        sets = self._sets(method, seed)
        if not self.is_done(method, seed):
            self._run(output, sets)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return learning_curve(rows, sets["batch.prompts"] * sets["batch.group_size"])

    def is_done(self, method: str, seed: int) -> bool:
        """Return whether a run has finished with the same keys."""
        path = self.folder / f"{method}-{seed}" / "done.json"
        return path.exists() and json.loads(path.read_text())["sets"] == self._sets(method, seed)

    def minutes(self, method: str, seed: int) -> float:
        """Return the duration of a finished run."""
        return json.loads((self.folder / f"{method}-{seed}" / "done.json").read_text())["minutes"]

    def _sets(self, method: str, seed: int) -> Results:
        sizes = self.sizes
        sets = METHODS[method] | ({"process.scorer.prm": str(self.prm)} if method == "prm" else {})
        if method == "tree":
            sets = sets | {"batch.group_size": max(2, sizes.group_size // 2)}
        return {
            "problems.path": str(self.folder / "train.jsonl"),
            "held_out.path": str(self.folder / "test.jsonl"),
            "engine.model": str(self.policy),
            "batch.prompts": sizes.prompts,
            "batch.group_size": sizes.group_size,
            "steps": sizes.steps,
            "eval_every": sizes.every,
            "eval_samples": sizes.eval_samples,
            "save_every": 0,
            "seed": seed,
            "ray_address": "local",
            **sets,
        }

    def _write_levels(self) -> None:
        for split, count in (("train", self.sizes.train), ("test", self.sizes.held_out)):
            path = self.folder / f"{split}.jsonl"
            if not path.exists():
                write_problems(path, make_sokoban_problems(count, 0, split, 5, 1))

    def _run(self, output: Path, sets: Mapping[str, Any]) -> None:
        self._write_levels()
        shutil.rmtree(output, ignore_errors=True)
        began = time.perf_counter()
        keys = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        log = output.with_suffix(".log")
        code = self.execute(["rl", "--config", str(CONFIG), "--set", f"output={output}", *keys], log)
        if code:
            raise RuntimeError(f"{output.name} ended with exit code {code}; see {log}")
        done = {"sets": dict(sets), "minutes": (time.perf_counter() - began) / 60}
        (output / "done.json").write_text(json.dumps(done, indent=2))
        for part in ("checkpoints", "policy"):  # nothing reads them
            shutil.rmtree(output / part, ignore_errors=True)


def mismatch(bench: Bench) -> Results:
    """Compare the log-probabilities of engine and trainer."""
    folder = bench.folder / "mismatch-policy"
    if not (folder / "config.json").exists():
        write_policy(folder)
    found = measure_mismatch(folder, bench.sizes.episodes, turns=8)
    return {"value": found.pop("max"), **found}


def rl_gain(bench: Bench) -> Results:
    """Compute the gain in solve rate of outcome rewards alone."""
    curves = [bench.curve("outcome", seed) for seed in bench.sizes.seeds]
    gains = [curve[-1][1] - curve[0][1] for curve in curves]
    half = T_95[len(gains) - 1] * stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return {
        "value": fmean(gains),
        "interval": [fmean(gains) - half, fmean(gains) + half],
        "gains": gains,
        "before": fmean(curve[0][1] for curve in curves),
        "after": fmean(curve[-1][1] for curve in curves),
        "minutes": max(bench.minutes("outcome", seed) for seed in bench.sizes.seeds),
    }


def sample_ratio(bench: Bench) -> Results:
    """Compare the methods by the number of episodes that they need. A null ratio means that a method did not get
    there."""
    methods = [method for method in METHODS if method != "prm" or bench.prm.is_dir()]
    curves = {method: [bench.curve(method, seed) for seed in bench.sizes.seeds] for method in methods}
    ratios = {method: median_ratio(curves["outcome"], curves[method]) for method in methods}
    value = min((ratios[method] for method in OWN if ratios.get(method) is not None), default=None)
    return {
        "value": value,
        "ratios": ratios,
        "mean_solve_rates": {method: _mean_rates(found) for method, found in curves.items()},
        "curves": curves,
    }


def _mean_rates(curves: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Return the mean solve rate over the seeds at each evaluation."""
    return [fmean(rate for _, rate in points) for points in zip(*curves, strict=True)]


def learning_curve(rows: Sequence[Mapping[str, Any]], episodes: int) -> list[tuple[float, float]]:
    """Return (episodes so far, solve rate) of each evaluation, from the rows of metrics.jsonl.

    A step plays `episodes` episodes, and each continuation of a turn counts as one more.
    """
    played = {row["step"]: episodes + CONTINUATIONS * row.get("branches", 0) for row in rows if row["kind"] == "train"}
    return [
        (sum(count for step, count in played.items() if step <= row["step"]), row["pass_at_1"])
        for row in rows
        if row["kind"] == "eval"
    ]


def median_ratio(
    outcome: Sequence[Sequence[tuple[float, float]]], other: Sequence[Sequence[tuple[float, float]]]
) -> float | None:
    """Return the median ratio over pairs of runs of the same seed, or None if it is infinite or undefined."""
    ratios = []
    for mine, theirs in zip(outcome, other, strict=True):
        own, reached = episodes_to(mine[-1][1], mine), episodes_to(mine[-1][1], theirs)
        ratios.append(reached / own if own and reached is not None else math.inf)
    found = median(ratios)
    return found if math.isfinite(found) else None


def episodes_to(rate: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Return the number of episodes after which a curve first reaches a solve rate, or None if it never does.

    Between two evaluations, the curve is a straight line.
    """
    before = curve[0]
    for point in curve:
        if point[1] >= rate:
            rise = point[1] - before[1]
            return before[0] + (point[0] - before[0]) * ((rate - before[1]) / rise if rise > 0 else 0.0)
        before = point
    return None


PARTS = {
    "mismatch": Part(mismatch, "at most 1e-4", lambda found: found["value"] <= 1e-4),
    "rl_gain": Part(
        rl_gain,
        "at least 0.2, interval above 0, at most 15 minutes",
        lambda found: found["value"] >= 0.2 and found["interval"][0] > 0 and found["minutes"] <= 15,
    ),
    "sample_ratio": Part(
        sample_ratio,
        "at most 0.67, and less than GiGPO",
        lambda found: (
            found["value"] is not None
            and found["value"] <= 0.67
            and found["value"] < (found["ratios"]["gigpo"] or math.inf)
        ),
    ),
}
"""Parts with the functions that measure them, and their targets in words and as predicates on the results."""


def status(bench: Bench) -> str:
    """Return which runs have finished."""
    runs = [(method, seed) for method in METHODS for seed in bench.sizes.seeds]
    return "\n".join(
        f"{method}-{seed}: {'done' if bench.is_done(method, seed) else 'missing'}" for method, seed in runs
    )


def main() -> None:
    """Measure the parts and merge their results into the results file."""
    parser = parts_parser(__doc__, PARTS, ROOT / "runs" / "sokoban" / "policy")
    parser.add_argument("--prm", type=Path, default=ROOT / "runs" / "bench-agents-labels" / "prm-values" / "prm")
    parser.add_argument("--status", action="store_true", help="show which runs are missing, and measure nothing")
    arguments = parser.parse_args()
    folder, output = folder_and_output(arguments, "bench-agents", "agents.json")
    bench = Bench(folder, arguments.policy, arguments.prm, SMALL if arguments.small else FULL, run_mmprm)
    if arguments.status:
        print(status(bench))
        return
    run_parts(PARTS, arguments.only, bench, output, arguments.small)


if __name__ == "__main__":
    main()
