"""Compare assignments of process reward on a level: the parts `short`, `long`, `bias`, and `progress_vs_value` of
the RL benchmark.

prm_speedup          generated tokens that outcome rewards alone need to reach their final accuracy, relative to the
                     process mode that is best on the seeds 0 to 2; the median of three fresh seeds, with 0 for a run
                     that never reaches this accuracy, and for a seed in which outcome rewards do not improve
prm_speedup_all_in   the same, with the tokens of the PRM's annotation
tree_speedup         the same for credit from continuations, whose tokens count, without a PRM
bias                 response length and steps per response under process reward, relative to outcome rewards alone, at
                     equal accuracies
progress_vs_value    final accuracy with credit for the change in value, minus that with credit for the value itself
                     (`delta`), on the long level
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from statistics import fmean, median
from typing import Any

from rl_curves import Point, curve, draw, matched_ratio, mean_interval, ratio_interval, rounded, speedup
from rl_runs import PRM, PRM_KEY, Bench, Results, Run

_PRM: dict[str, Any] = {PRM_KEY: PRM}
_TREE = {"rollouts.branching.continuations": 2, "rollouts.branching.max_per_step": 1}
MODES: dict[str, dict[str, Any]] = {
    "outcome": {},
    "soft_min": _PRM,
    "strict_min": _PRM | {"credit.mode": "strict_min"},
    "delta": _PRM | {"credit.mode": "return_to_go", "credit.transform": "delta"},
    "progress": _PRM | {"credit.mode": "progress"},
    "value": _PRM | {"credit.mode": "value"},
    "value_gae": _PRM | {"credit.mode": "value", "advantage.lam": 0.8},
    "scalar": _PRM | {"credit.mode": "scalar", "process.aggregator": "min"},
    "step_gae": _PRM
    | {
        "credit.mode": "step_gae",
        "advantage.estimator": "gae",
        "trainer.critic.learning_rate": 1e-3,
        "trainer.critic.warmup_updates": 5,
    },
    "pure": _PRM | {"credit.baseline": "pure_tokens"},
    "tree": _TREE | {"credit.source": "tree"},
    "both": _PRM | _TREE | {"credit.source": "both"},
}
"""Keys of each mode. `delta` credits a step with the value after it, `progress` with the change in value, and with
`value`, the value before a step is the baseline of the outcome; `value_gae` also credits a step with the values that
follow it (λ = 0.8). `pure` is PURE's published form, whose baseline is biased by length; it is shown, but not
chosen."""
CANDIDATES = tuple(mode for mode, sets in MODES.items() if PRM_KEY in sets and mode != "pure")
"""Modes among which prm_speedup chooses."""


def mode_runs(bench: Bench, level: str) -> list[Run]:
    """Return the runs of a level: all modes, and then the chosen mode, outcome rewards, and trees on fresh seeds."""
    runs = [_run(level, mode, seed) for mode in MODES for seed in bench.sizes.seeds]
    if all(map(bench.is_done, runs)):
        modes = ("outcome", best_mode(bench, level), "tree")
        runs += [_run(level, mode, seed) for mode in modes for seed in bench.sizes.fresh_seeds]
    return runs


def measure_level(bench: Bench, level: str) -> Results:
    """Compute the speed-ups of a level, and write its curves and their figure."""
    seeds, fresh = bench.sizes.seeds, bench.sizes.fresh_seeds
    best, annotation = best_mode(bench, level), bench.level(level).annotation_tokens()
    outcome = _curves(bench, level, "outcome", fresh)
    chosen, tree = (_curves(bench, level, mode, fresh) for mode in (best, "tree"))
    curves = {mode: _curves(bench, level, mode, seeds) for mode in MODES}
    _write_curves(bench, level, curves, {"outcome": outcome, best: chosen, "tree": tree})
    return {
        "prm_speedup": median_of(_speedups(outcome, chosen)),
        "prm_speedup_all_in": median_of(_speedups(outcome, chosen, annotation)),
        "tree_speedup": median_of(_speedups(outcome, tree)),
        "mode": best,
        "annotation_tokens": annotation,
        "speedups": {mode: _speedups(curves["outcome"], each) for mode, each in curves.items() if mode != "outcome"},
        "fresh_speedups": {best: _speedups(outcome, chosen), "tree": _speedups(outcome, tree)},
        "accuracy": {mode: [each[-1].accuracy for each in found] for mode, found in curves.items()},
        "minutes": {mode: fmean(each[-1].seconds for each in found) / 60 for mode, found in curves.items()},
    }


def best_mode(bench: Bench, level: str) -> str:
    """Return the process mode with the highest median speed-up, and among equals, the highest mean final accuracy."""
    seeds = bench.sizes.seeds
    outcome = _curves(bench, level, "outcome", seeds)

    def rank(mode: str) -> tuple[float, float]:
        found = _curves(bench, level, mode, seeds)
        return median_of(_speedups(outcome, found)), fmean(each[-1].accuracy for each in found)

    return max(CANDIDATES, key=rank)


def bias_runs(bench: Bench) -> list[Run]:
    """Return the runs that measure the bias: all seeds of outcome rewards and of the chosen mode, on both levels."""
    runs = {level: mode_runs(bench, level) for level in ("short", "long")}
    return [run for found in runs.values() for run in found]


def measure_bias(bench: Bench) -> Results:
    """Compute the ratios of response length and of steps per response at equal accuracy, with 95% intervals."""
    return {level: _bias(bench, level) for level in ("short", "long")}


def is_unbiased(results: Results) -> bool:
    """Return whether all intervals are within 0.9 to 1.1."""
    intervals = [each[key] for each in results.values() for key in ("response_tokens", "steps")]
    bounded = [each for each in intervals if each is not None and each["high"] is not None]
    return len(bounded) == len(intervals) and all(each["low"] >= 0.9 and each["high"] <= 1.1 for each in bounded)


def progress_runs(bench: Bench) -> list[Run]:
    """Return the runs on the long level whose credit is the value after a step, or its change."""
    return [_run("long", mode, seed) for seed in bench.sizes.seeds for mode in ("delta", "progress")]


def measure_progress(bench: Bench) -> Results:
    """Compute the difference in accuracy after equally many steps, as a mean over the seeds with its 95% interval."""
    curves = {mode: _curves(bench, "long", mode, bench.sizes.seeds) for mode in ("delta", "progress")}
    final = {mode: [each[-1].accuracy for each in found] for mode, found in curves.items()}
    differences = [change - value for value, change in zip(final["delta"], final["progress"], strict=True)]
    return {
        "difference": mean_interval(differences),
        "before": fmean(run[0].accuracy for found in curves.values() for run in found),
        "after": final,
        "curves": {mode: [[each.accuracy for each in run] for run in found] for mode, found in curves.items()},
        "tokens": {mode: fmean(each[-1].tokens for each in found) for mode, found in curves.items()},
        "minutes": {mode: fmean(each[-1].seconds for each in found) / 60 for mode, found in curves.items()},
    }


def _bias(bench: Bench, level: str) -> Results:
    best, seeds = best_mode(bench, level), (*bench.sizes.seeds, *bench.sizes.fresh_seeds)
    pairs = list(zip(_curves(bench, level, "outcome", seeds), _curves(bench, level, best, seeds), strict=True))
    found: Results = {"mode": best}
    for key in ("response_tokens", "steps"):
        ratios = [matched_ratio(outcome, other, attrgetter(key)) for outcome, other in pairs]
        known = [ratio for ratio in ratios if ratio is not None]
        found |= {key: ratio_interval(known) if known else None, f"{key}_runs": len(known)}
    return found


def median_of(speedups: Sequence[float | None]) -> float:
    """Return the median over all seeds, where an undefined speed-up counts as 0.

    It is undefined if outcome rewards do not improve: they reach their final accuracy without any tokens.
    """
    return median(each or 0.0 for each in speedups)


def _speedups(
    outcome: Sequence[Sequence[Point]], other: Sequence[Sequence[Point]], further_tokens: float = 0.0
) -> list[float | None]:
    return [speedup(alone, helped, further_tokens) for alone, helped in zip(outcome, other, strict=True)]


def _run(level: str, mode: str, seed: int) -> Run:
    return Run(level, mode, seed, MODES[mode])


def _curves(bench: Bench, level: str, mode: str, seeds: Sequence[int]) -> list[list[Point]]:
    return [curve(bench.rows(_run(level, mode, seed))) for seed in seeds]


def _write_curves(
    bench: Bench, level: str, curves: Mapping[str, list[list[Point]]], fresh: Mapping[str, list[list[Point]]]
) -> None:
    path = bench.results.with_name(f"{bench.results.stem}_curves.json")
    stored = json.loads(path.read_text()) if path.exists() else {}
    named = {**curves, **{f"{mode}, fresh seeds": each for mode, each in fresh.items()}}
    stored[level] = {mode: [rounded(points) for points in seeds] for mode, seeds in named.items()}
    path.write_text(json.dumps(stored) + "\n")
    draw(curves, bench.figures / f"rl-{level}.png")
