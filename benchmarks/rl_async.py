"""Compare staleness 0, 1, and 2 with two engines: the part `async` of the RL benchmark.

seconds    median seconds per step
accuracy   pass@1 after equal tokens, interpolated between evaluations
staleness  mean number of updates between the first token of a response and its use
partial    fraction of responses with tokens from several versions of the weights
"""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from rl_curves import Point, curve, value_at
from rl_runs import Bench, Part, Results, Run

STALENESS = (0, 1, 2)


def async_runs(bench: Bench) -> list[Run]:
    """Return the runs of every staleness and seed."""
    return [_run(staleness, seed) for staleness in STALENESS for seed in bench.sizes.seeds]


def measure_async(bench: Bench) -> Results:
    """Return the metrics of each staleness, and the number of tokens at which accuracies are compared."""
    rows = {each: [bench.rows(_run(each, seed)) for seed in bench.sizes.seeds] for each in STALENESS}
    curves = {each: [curve(run) for run in runs] for each, runs in rows.items()}
    tokens = min(points[-1].tokens for seeds in curves.values() for points in seeds)
    return {"tokens": tokens} | {
        f"staleness_{each}": {
            "seconds": median(row["seconds"] for run in rows[each] for row in _steps(run)),
            "accuracy": [accuracy_after(tokens, points) for points in curves[each]],
            "staleness": fmean(row["staleness"] for run in rows[each] for row in _steps(run)),
            "partial": fmean(row["partial"] for run in rows[each] for row in _steps(run)),
        }
        for each in STALENESS
    }


def accuracy_after(tokens: float, points: list[Point]) -> float:
    """Return the accuracy of a curve after a number of generated tokens."""
    later = next(index for index, point in enumerate(points) if point.tokens >= tokens)
    if later == 0:
        return points[0].accuracy
    before, after = points[later - 1], points[later]
    position = later - 1 + (tokens - before.tokens) / (after.tokens - before.tokens)
    return value_at(position, [point.accuracy for point in points])


PARTS = {"async": Part(async_runs, measure_async)}


def _steps(rows: list[Results]) -> list[Results]:
    return [row for row in rows if row["kind"] == "train" and "staleness" in row]


def _run(staleness: int, seed: int) -> Run:
    sets: dict[str, Any] = {"max_staleness": staleness, "rollouts.engines": 2, "trainer.loss.importance_cap": 2}
    return Run("short", f"staleness-{staleness}", seed, sets)
