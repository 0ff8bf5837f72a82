"""Measure the cost and quality of annotation: `make bench-annotate` writes benchmarks/results/annotate.json.

saturation            generated tokens/s of a campaign, relative to the same engines given all requests at once
speedup_over_serial   distinct labels/s, relative to one problem at a time with K rollouts per state on all cores
adaptive_token_ratio  tokens per distinct label, relative to K rollouts per state; both with many trees in flight
simulated             a large campaign without a model
kill                  a campaign whose driver and workers are killed at random times

The first three metrics are medians over several rounds with different problems, with their minimum and maximum.
All other measurements are stored in annotate_details.json; docs/growth.png also shows how costs grow.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

Results = dict[str, Any]
RATIOS = ("saturation", "speedup_over_serial", "adaptive_token_ratio")


def no_higher_error(details: Results) -> bool:
    """Return whether the label errors of the default schedule are no higher than with fixed K.

    RMSEs are compared by their medians over the rounds. First errors are compared over all rounds: the upper end of the
    95 % interval of the paired difference must not be below 0.
    """
    rmse = {name: median(each["errors"][name]["rmse"] for each in details["rounds"]) for name in ("default", "fixed")}
    return rmse["default"] <= rmse["fixed"] and first_error_difference(details)[2] >= 0


def first_error_difference(details: Results) -> tuple[float, float, float]:
    """Return the difference in correctly located first errors, default minus fixed K, with a 95 % interval.

    The difference is a fraction of the searched solutions. The bootstrap resamples problems, because solutions to one
    problem are not independent: one prefix may decide several of them.
    """
    problems = np.array([each for one in details["rounds"] for each in one["errors"]["pairs"]["problems"]])
    resamples = np.random.default_rng(0).integers(len(problems), size=(10_000, len(problems)))
    solutions, surplus = problems[resamples].sum(axis=1).T
    low, high = np.quantile(surplus / solutions, (0.025, 0.975))
    return float(problems[:, 1].sum() / problems[:, 0].sum()), float(low), float(high)


BARS: dict[str, tuple[str, Callable[[Results, Results], bool]]] = {
    "saturation": ("at least 0.90", lambda r, d: r["saturation"] >= 0.9),
    "speedup_over_serial": ("at least 4", lambda r, d: r["speedup_over_serial"] >= 4),
    "adaptive_token_ratio": (
        "at most 0.5, RMSE no higher, first errors correct no less often than with fixed K (paired, 95 %)",
        lambda r, d: r["adaptive_token_ratio"] <= 0.5 and no_higher_error(d),
    ),
    "simulated": (
        "labels at least 700,000; rollouts_per_second at least 5,000; driver_peak_gib at most 2; "
        "restart_seconds at most 60",
        lambda r, d: (
            r["simulated"]["labels"] >= 700_000
            and r["simulated"]["rollouts_per_second"] >= 5000
            and r["simulated"]["driver_peak_gib"] <= 2
            and r["simulated"]["restart_seconds"] <= 60
        ),
    ),
    "kill": (
        "kills at least 20; lost 0; double_counted 0; identical true",
        lambda r, d: (
            r["kill"]["kills"] >= 20
            and r["kill"]["lost"] == r["kill"]["double_counted"] == 0
            and r["kill"]["identical"]
        ),
    ),
}
SIMULATED = ("labels", "rollouts_per_second", "driver_peak_gib", "store_gib", "restart_seconds")
KILL = ("kills", "lost", "double_counted", "identical")
PARTS = ("engine", "simulated", "kill", "growth")


def engine(folder: Path, arguments: argparse.Namespace, details: Results) -> Results:
    """Benchmark annotation with real engines; return the median ratios of the rounds with minimum and maximum.

    Each round is stored in `details` when it ends, so an interrupted benchmark resumes; a finished one starts over.
    """
    from annotate_engine import one_round

    if len(details.get("rounds", [])) >= arguments.rounds:
        del details["rounds"]
    rounds = details.setdefault("rounds", [])
    for number in range(len(rounds), arguments.rounds):
        rounds.append(one_round(folder, number, arguments))
        _write(_details(arguments.output), details)
    metrics: Results = {}
    for name in RATIOS:
        values = [each[name] for each in rounds]
        metrics[name] = round(median(values), 3)
        metrics[f"{name}_spread"] = [round(min(values), 3), round(max(values), 3)]
    details["first_error_difference"] = first_error_difference(details)
    return metrics


def profile_of(folder: Path) -> Path:
    """Run a campaign with the built-in policy, record its profile for the simulation, and return the path."""
    from annotate_engine import annotate
    from annotate_simulated import record_profile

    from mmprm.tiny.world import make_problems

    target = folder / "recorded"
    target.mkdir()
    run = annotate("default", [tiny.problem for tiny in make_problems(200, 99, "annotate")], target, 99, 64)
    record_profile(run.store, folder / "profile.json")
    return folder / "profile.json"


def draw_growth(growth: dict[str, Any], path: Path) -> None:
    """Plot bookkeeping time per label and per state against size. A flat line means that the total is linear."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    panels = (
        ("microseconds_a_label_by_problems", "problems", "µs per label, campaign"),
        ("microseconds_a_state_by_states", "states of one tree", "µs per state, search"),
    )
    for axes, (key, across, up) in zip(figure.subplots(1, 2), panels, strict=True):
        points = sorted((int(size), cost) for size, cost in growth[key].items())
        axes.loglog(*zip(*points, strict=True), "o-", color="#2b6cb0")
        axes.set(xlabel=across, ylabel=up, ylim=(min(c for _, c in points) / 4, max(c for _, c in points) * 4))
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    from machine import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=PARTS, help="parts to measure; other results are kept"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=1000, help="number of problems for saturation (1000)")
    parser.add_argument("--few-problems", type=int, default=120, help="number of problems for comparing labels (120)")
    parser.add_argument("--serial-problems", type=int, default=24)
    parser.add_argument("--max-rollouts", type=int, default=320)
    parser.add_argument("--simulated-problems", type=int, default=10_000)
    parser.add_argument("--simulated-max-rollouts", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "annotate.json")
    arguments = parser.parse_args()
    results, details = _read(arguments.output), _read(_details(arguments.output))
    folder = Path(tempfile.mkdtemp(prefix="mmprm-bench-"))
    try:
        measure(folder, arguments, results, details)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    measured = [key for key in BARS if key in results]
    details["bars"] = {key: BARS[key][0] for key in measured}
    details["met"] = {key: bool(BARS[key][1](results, details)) for key in measured}
    details["machine"] = machine()
    _write(arguments.output, results)
    _write(_details(arguments.output), details)
    print(json.dumps(results, indent=2))
    for key, met in details["met"].items():
        print(f"{key:<24}{'met' if met else 'MISSED'}: {BARS[key][0]}")


def measure(folder: Path, arguments: argparse.Namespace, results: dict[str, Any], details: dict[str, Any]) -> None:
    if "engine" in arguments.only:
        results |= engine(folder, arguments, details)
    if not set(arguments.only) - {"engine"}:
        return
    import annotate_simulated

    profile = profile_of(folder)
    if "kill" in arguments.only:
        details["kill"] = annotate_simulated.kill(profile, folder / "kill", 24, 1000, 640)
        results["kill"] = {key: details["kill"][key] for key in KILL}
    if "growth" in arguments.only:
        details["growth"] = annotate_simulated.growth(profile, folder / "growth")
    if "simulated" in arguments.only:
        size = (arguments.simulated_problems, arguments.simulated_max_rollouts)
        big = annotate_simulated.simulated(profile, folder / "simulated", *size)
        details["simulated"], results["simulated"] = big, {key: big[key] for key in SIMULATED}
        if "growth" in details:
            cost = 1e6 * big["seconds"] / big["labels"]
            details["growth"]["microseconds_a_label_by_problems"][str(big["problems"])] = cost
    if "growth" in details:
        draw_growth(details["growth"], ROOT / "docs" / "growth.png")


def _details(path: Path) -> Path:
    return path.with_name(f"{path.stem}_details.json")


def _write(path: Path, metrics: Results) -> None:
    path.write_text(json.dumps(metrics, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
