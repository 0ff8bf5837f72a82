"""Measure reinforcement learning in the built-in toy world: `make bench-rl` writes benchmarks/results/rl.json.

rloo_outcome   held-out pass@1 before and after RLOO with outcome rewards alone, for three seeds, and the smallest gain
overhead       fraction of a step spent outside generation, scoring, forward, backward and optimizer
sync           fraction of a step spent on weight transfer
vs_trl         seconds per step relative to TRL's RLOO trainer with default settings; per step and update when tuned
short, long    assignments of process reward on two levels of the world (rl_modes.py)
bias           response length and steps under process reward, at equal accuracy (rl_modes.py)
progress_vs_value
               credit with the change in value, compared with the value itself, on the long level (rl_modes.py)
ppo_clip, cpgd, cispo, gspo, cpgd_outcome
               surrogates at eight updates per rollout (rl_surrogates.py)
async          staleness 0, 1, and 2 (rl_async.py)
hack           a weak PRM under pressure: frozen, outcome-dominant, and retrained (rl_hack.py)

Each run is `mmprm rl` in a separate process. An interrupted benchmark resumes with the missing runs; `--status` shows
what is missing. `--small` tests the parts with tiny runs, whose results are meaningless.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import rl_async
import rl_hack
import rl_surrogates
from machine import machine
from rl_levels import FULL, RATE, ROOT, SMALL
from rl_modes import (
    bias_runs,
    is_unbiased,
    measure_bias,
    measure_level,
    measure_progress,
    mode_runs,
    progress_runs,
)
from rl_runs import Bench, Part, Results, Run, status


def outcome_runs(bench: Bench) -> list[Run]:
    """Return the runs with outcome rewards alone on the short level."""
    return [Run("short", "outcome", seed) for seed in bench.sizes.seeds]


def rloo_outcome(bench: Bench) -> Results:
    """Compute the gain in pass@1 of outcome rewards alone."""
    found = [[row for row in bench.rows(run) if row["kind"] == "eval"] for run in outcome_runs(bench)]
    before, after = ([each[index]["pass_at_1"] for each in found] for index in (0, -1))
    gains = [after - before for before, after in zip(before, after, strict=True)]
    return {
        "before": median(before),
        "after": median(after),
        "min_gain": min(gains),
        "gains": gains,
        "steps": found[0][-1]["step"],
    }


def overhead(bench: Bench) -> Results:
    """Return the median fraction of a step in which no model ran."""
    return {"share": median(row["overhead"] for row in _steps(bench))}


def sync(bench: Bench) -> Results:
    """Return the median fraction of a step spent on weight transfer."""
    return {"share": median(row["seconds_sync"] / row["seconds"] for row in _steps(bench))}


def vs_trl(bench: Bench) -> Results:
    """Compare with TRL's RLOO trainer. Runs are not reused, because the two trainers must alternate."""
    from rl_trl import step_vs_trl

    with tempfile.TemporaryDirectory(prefix="mmprm-bench-") as folder:
        fresh = Bench(Path(folder), bench.sizes)

        def ours(name: str, seed: int, **sets: Any) -> list[Results]:
            run = Run("short", name, seed, {"eval_every": 0, **sets})
            fresh.finish([run])
            return fresh.rows(run)

        return step_vs_trl(ours, fresh.level("short").problems("train"), bench.sizes.seeds, RATE)


def _steps(bench: Bench) -> Iterator[Results]:
    return (row for run in outcome_runs(bench) for row in bench.rows(run) if row["kind"] == "train")


def _level(name: str, bar: tuple[str, Any]) -> Part:
    return Part(lambda bench: mode_runs(bench, name), lambda bench: measure_level(bench, name), bar)


PARTS: dict[str, Part] = {
    "rloo_outcome": Part(outcome_runs, rloo_outcome, ("min_gain at least 0.15", lambda r: r["min_gain"] >= 0.15)),
    "overhead": Part(outcome_runs, overhead, ("share at most 0.08", lambda r: r["share"] <= 0.08)),
    "sync": Part(outcome_runs, sync, ("share at most 0.05", lambda r: r["share"] <= 0.05)),
    "vs_trl": Part(
        lambda bench: [],
        vs_trl,
        (
            "ratio at most 0.21, update_ratio at most 1.0",
            lambda r: r["ratio"] <= 0.21 and r["update_ratio"] <= 1.0,
        ),
    ),
    "long": _level(
        "long",
        (
            "prm_speedup and tree_speedup at least 1.5",
            lambda r: min(r[key] for key in ("prm_speedup", "tree_speedup")) >= 1.5,
        ),
    ),
    "short": _level("short", ("reported", lambda r: True)),
    "bias": Part(bias_runs, measure_bias, ("95% intervals of the ratios within 0.9 to 1.1", is_unbiased)),
    "progress_vs_value": Part(progress_runs, measure_progress),
    **rl_surrogates.PARTS,
    **rl_async.PARTS,
    **rl_hack.PARTS,
}


def main() -> None:
    """Measure the parts, or show what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PARTS,
        help="parts to measure (all; with --small, all but vs_trl); other results are kept",
    )
    parser.add_argument("--status", action="store_true", help="show which runs are missing, and measure nothing")
    parser.add_argument("--small", action="store_true", help="test every part with tiny runs, in a folder of their own")
    parser.add_argument("--work", type=Path, help="folder for the runs (runs/bench-rl, or runs/bench-rl-small)")
    parser.add_argument("--output", type=Path, help="file for the results; with --small, rl.json in the runs' folder")
    arguments = parser.parse_args()
    bench = _bench(arguments)
    parts = arguments.only or [name for name in PARTS if not (arguments.small and name == "vs_trl")]
    if arguments.status:
        print(status(bench, {name: PARTS[name] for name in parts}))
        return
    for name in parts:
        measure(bench, name)


def measure(bench: Bench, name: str) -> None:
    """Execute the missing runs of a part, and add its results to the files of the benchmark."""
    part = PARTS[name]
    while missing := [run for run in part.runs(bench) if not bench.is_done(run)]:
        bench.finish(missing)
    details_path = bench.results.with_name(f"{bench.results.stem}_details.json")
    results, details = (json.loads(p.read_text()) if p.exists() else {} for p in (bench.results, details_path))
    results[name] = details[name] = part.measure(bench)
    measured = [key for key in PARTS if key in results]
    details["bars"] = {key: PARTS[key].bar[0] for key in measured}
    details["met"] = {key: bool(PARTS[key].bar[1](results[key])) for key in measured}
    details.setdefault("machines", {})[name] = machine()
    for path, metrics in ((bench.results, results), (details_path, details)):
        path.write_text(json.dumps({key: metrics[key] for key in metrics}, indent=2) + "\n")
    print(json.dumps({name: results[name]}, indent=2), "met" if details["met"][name] else "MISSED", flush=True)


def _bench(arguments: argparse.Namespace) -> Bench:
    folder = arguments.work or ROOT / "runs" / ("bench-rl-small" if arguments.small else "bench-rl")
    results = arguments.output or (folder if arguments.small else ROOT / "benchmarks" / "results") / "rl.json"
    return Bench(folder, SMALL if arguments.small else FULL, results, folder if arguments.small else ROOT / "docs")


if __name__ == "__main__":
    main()
