"""Compare surrogates at eight updates per rollout: the parts `ppo_clip`, `cpgd`, `cispo`, and `gspo`.

Each is trained at three learning rates. A run counts as collapsed if it ends with an error, or with a pass@1 below half
of its initial value. A run that ends with an error has no final pass@1.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rl_runs import Bench, Part, Results, Run

UPDATES = 8
RATES = (1e-4, 3e-4, 6e-4)
SURROGATES: dict[str, dict[str, Any]] = {
    "ppo_clip": {},
    "cpgd": {"advantage.estimator": "cpgd"},
    "cispo": {},
    "gspo": {
        "trainer.loss.clip_low": 3e-4,
        "trainer.loss.clip_high": 4e-4,
        "trainer.loss.aggregation": "sequence_mean",
    },
}
"""Keys of each surrogate; gspo has the paper's clip range and aggregation."""


def surrogate_runs(bench: Bench, surrogate: str) -> list[Run]:
    """Return the runs of a surrogate at all learning rates and seeds."""
    return [_run(surrogate, rate, seed) for rate in RATES for seed in bench.sizes.seeds]


def measure_surrogate(bench: Bench, surrogate: str) -> Results:
    """Return the final pass@1 per seed, None if the run ended early, and the number of collapsed runs, per rate."""
    return {f"{rate:g}": _at_rate(bench, surrogate, rate) for rate in RATES}


def measure_cpgd(bench: Bench) -> Results:
    """Compare CPGD with PPO clipping: pass@1 at the lowest rate, and collapses at the highest.

    A CPGD run that ended early counts as 0, and a PPO run with its last evaluation.
    """
    low, high = RATES[0], RATES[-1]
    clipped = [_evaluations(bench, "ppo_clip", low, seed)[-1] for seed in bench.sizes.seeds]
    return {
        "cpgd": median(accuracy or 0.0 for accuracy in _at_rate(bench, "cpgd", low)["accuracy"]),
        "rloo": median(end["pass_at_1"] for end in clipped),
        "rloo_low": median(end["pass_at_1_low"] for end in clipped),
        "collapsed_cpgd": _at_rate(bench, "cpgd", high)["collapsed"],
        "collapsed_ppo_clip": _at_rate(bench, "ppo_clip", high)["collapsed"],
        "learning_rate": high,
    }


def is_collapsed(evaluations: Sequence[Results], steps: int) -> bool:
    """Return whether a run collapsed: it has no evaluation of its last step, or accuracy fell by more than half."""
    before, after = evaluations[0]["pass_at_1"], evaluations[-1]["pass_at_1"]
    return evaluations[-1]["step"] < steps or after is None or after < before / 2


PARTS = {
    name: Part(
        lambda bench, name=name: surrogate_runs(bench, name), lambda bench, name=name: measure_surrogate(bench, name)
    )
    for name in SURROGATES
} | {
    "cpgd_outcome": Part(
        lambda bench: [*surrogate_runs(bench, "ppo_clip"), *surrogate_runs(bench, "cpgd")],
        measure_cpgd,
        (
            "CPGD not below RLOO beyond its interval, and collapses in fewer seeds",
            lambda r: r["cpgd"] >= r["rloo_low"] and r["collapsed_cpgd"] < r["collapsed_ppo_clip"],
        ),
    )
}


def _at_rate(bench: Bench, surrogate: str, rate: float) -> Results:
    found = [_evaluations(bench, surrogate, rate, seed) for seed in bench.sizes.seeds]
    steps = bench.level("short").sets()["steps"]
    return {
        "accuracy": [each[-1]["pass_at_1"] if each[-1]["step"] == steps else None for each in found],
        "collapsed": sum(is_collapsed(each, steps) for each in found),
    }


def _evaluations(bench: Bench, surrogate: str, rate: float, seed: int) -> list[Results]:
    return [row for row in bench.rows(_run(surrogate, rate, seed)) if row["kind"] == "eval"]


def _run(surrogate: str, rate: float, seed: int) -> Run:
    sets = {
        "trainer.loss.surrogate": surrogate,
        "batch.updates": UPDATES,
        "trainer.optimization.learning_rate": rate,
        "eval_every": 0,
    }
    return Run("short", f"{surrogate}-{rate:g}", seed, sets | SURROGATES[surrogate], may_end_early=True)
