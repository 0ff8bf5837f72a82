"""Put a weak PRM under pressure: the part `hack` of the RL benchmark.

The PRM of the level `weak` is trained on labels of only a few problems, and the policy is trained for many steps.

frozen            reward by the PRM alone
mixed             outcome rewards and process rewards, compared within a group
outcome_dominant  the same, with process rewards compared within an outcome (credit.compare_within=outcome)
value             outcome rewards, with scores as a baseline (credit.mode=value)
refresh           reward by the PRM alone, which is retrained on the run's own trees (process.refresh)
alarm             the step after which an alarm on `prm_auc` ends the frozen run, computed from its log

before, after     held-out pass@1 before the first and after the last step, per seed
prm_score         mean step score of the first and of the last steps, per seed
unfinished        number of runs that an error has ended before the last step
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rl_levels import FULL, LEVELS, ROOT
from rl_runs import PRM, PRM_KEY, Bench, Part, Results, Run

from policy_rl.monitor.alarms import Alarms, Bounds, MonitorConfig

_PRM: dict[str, Any] = {PRM_KEY: PRM}
_PRM_ALONE = _PRM | {"rewards.accuracy_weight": 0}
MODES: dict[str, dict[str, Any]] = {
    "frozen": _PRM_ALONE,
    "mixed": _PRM,
    "outcome_dominant": _PRM | {"credit.compare_within": "outcome"},
    "value": _PRM | {"credit.mode": "value"},
    "refresh": _PRM_ALONE
    | {
        "rollouts.branching.store": "true",
        "rollouts.branching.choose": "first",
        "rollouts.branching.groups": 0.5,
        "process.refresh.train": ROOT / "benchmarks" / "rl_hack_prm.yaml",
    },
}
MIN_AUC = 0.85
REFRESH = {"min_auc": MIN_AUC, "window": 200, "min_problems": 100}
SMALL_REFRESH = {"min_auc": 1.0, "window": 4, "min_problems": 2, "dev": 0.5}
"""Settings with which a tiny run retrains the PRM at least once, unless its scores are perfect."""
ALARM = MonitorConfig(alarms={"prm_auc": Bounds(min=0.6)})
ENDS = 5
"""Number of steps at each end of a run over which scores are averaged."""


def hack_runs(bench: Bench) -> list[Run]:
    """Return the runs of every mode and seed."""
    return [_run(bench, mode, seed) for mode in MODES for seed in bench.sizes.seeds]


def measure_hack(bench: Bench) -> Results:
    """Return the accuracies and scores of each mode, and what alarms and new PRMs did."""
    rows = {mode: [bench.rows(_run(bench, mode, seed)) for seed in bench.sizes.seeds] for mode in MODES}
    last = bench.sizes.steps or LEVELS["weak"].steps
    found: Results = {mode: _ends(each, last) for mode, each in rows.items()}
    found["frozen"]["fell"] = fallen(found["frozen"])
    found["alarm"] = [alarm_step(_steps(each)) for each in rows["frozen"]]
    found["refresh"] |= refreshes([_steps(each) for each in rows["refresh"]])
    found["curves"] = {mode: _curves(each) for mode, each in rows.items()}
    return found


def fallen(ends: Mapping[str, Sequence[Any]]) -> int:
    """Return the number of seeds whose accuracy is below its start although the PRM's scores have risen."""
    pairs = zip(ends["before"], ends["after"], ends["prm_score"], strict=True)
    return sum(after < before and last > first for before, after, (first, last) in pairs)


def alarm_step(steps: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the step after which ALARM ends a run, and the training accuracy there; None if it never does."""
    alarms = Alarms(ALARM)
    for row in steps:
        if alarms.see({"prm_auc": _number(row["prm_auc"])}):
            return {"step": row["step"], "accuracy": row["accuracy"]}
    return None


def refreshes(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Results:
    """Return, per seed, the number of new PRMs, and the AUC on held-out labels before and after the first one.

    The AUC after it is the first one that is computed on labels of the new PRM alone.
    """
    before = [[_number(row["prm_tree_auc"]) for row in steps if not row["prm_refreshes"]] for steps in runs]
    after = [[_number(row["prm_tree_auc"]) for row in steps if row["prm_refreshes"]] for steps in runs]
    return {
        "refreshes": [steps[-1]["prm_refreshes"] for steps in runs],
        "auc_before": [_first(reversed(each)) for each in before],
        "auc_after": [_first(each) for each in after],
    }


def holds(found: Results) -> bool:
    """Return whether the frozen PRM is hacked and retraining prevents it."""
    refresh = found["refresh"]
    kept = all(after >= before for before, after in zip(refresh["before"], refresh["after"], strict=True))
    kept = kept and not refresh["unfinished"]
    return found["frozen"]["fell"] >= 2 and kept and all((auc or 0) >= MIN_AUC for auc in refresh["auc_after"])


PARTS = {
    "hack": Part(
        hack_runs,
        measure_hack,
        (
            "frozen: accuracy below its start in at least 2 seeds while scores rise; refresh: in no seed, and "
            f"AUC at least {MIN_AUC} after the first new PRM",
            holds,
        ),
    )
}


def _run(bench: Bench, mode: str, seed: int) -> Run:
    settings = REFRESH if bench.sizes == FULL else SMALL_REFRESH
    refresh = {f"process.refresh.{key}": value for key, value in settings.items()} if mode == "refresh" else {}
    return Run("weak", mode, seed, MODES[mode] | refresh, may_end_early=True)  # `unfinished` counts such runs


def _steps(rows: Sequence[Results]) -> list[Results]:
    return [row for row in rows if row["kind"] == "train" and row["updates"]]


def _ends(runs: Sequence[Sequence[Results]], last: int) -> Results:
    evaluations = [[row for row in rows if row["kind"] == "eval"] for rows in runs]
    accuracies = [[row["pass_at_1"] for row in each] for each in evaluations]
    # A step in which no response could be scored has no score.
    scores = [[row["prm_score"] for row in _steps(rows) if row["prm_score"] is not None] for rows in runs]
    return {
        "before": [each[0] for each in accuracies],
        "after": [each[-1] for each in accuracies],
        "prm_score": [[round(fmean(part), 4) for part in (each[:ENDS], each[-ENDS:])] for each in scores],
        "unfinished": sum(each[-1]["step"] < last for each in evaluations),
    }


def _curves(runs: Sequence[Sequence[Results]]) -> Results:
    """Return (step, pass@1) of every evaluation, and the step scores, averaged over seeds."""
    accuracy: dict[int, list[float]] = {}
    scores: dict[int, list[float]] = {}
    for rows in runs:
        for row in rows:
            if row["kind"] == "eval":
                accuracy.setdefault(row["step"], []).append(row["pass_at_1"])
        for row in _steps(rows):
            if row["prm_score"] is not None:
                scores.setdefault(row["step"], []).append(row["prm_score"])
    named = {"pass_at_1": accuracy, "prm_score": scores}
    return {name: [[step, round(fmean(values), 4)] for step, values in found.items()] for name, found in named.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _first(values: Any) -> float | None:
    return next((value for value in values if not math.isnan(value)), None)
