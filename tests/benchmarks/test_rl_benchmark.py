"""Test the RL benchmark: curves and comparisons on worked values, and which runs are executed, without a model."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import rl
import rl_modes
from rl_async import accuracy_after
from rl_curves import Point, curve, matched_ratio, mean_interval, position_of, ratio_interval, rounded, speedup
from rl_levels import SMALL
from rl_runs import PRM, PRM_KEY, Bench, Run, status
from rl_surrogates import is_collapsed, measure_cpgd, measure_surrogate, surrogate_runs


def points(*accuracies: float, tokens: float = 100, length: float = 10) -> list[Point]:
    """Return a curve with an evaluation every `tokens` tokens, whose responses grow by one token each time."""
    return [Point(i, i * tokens, i, accuracy, length + i, 5) for i, accuracy in enumerate(accuracies)]


def test_a_curve_adds_up_tokens_and_averages_lengths_between_evaluations() -> None:
    train = [
        {
            "kind": "train",
            "step": step,
            "generated_tokens": 100 * step,
            "seconds": 2,
            "response_tokens": step,
            "steps": 3,
        }
        for step in (1, 2, 3, 4)
    ]
    rows = [{"kind": "eval", "step": step, "pass_at_1": step / 10} for step in (0, 2, 4)] + train
    assert curve(rows) == [
        Point(0, 0, 0, 0.0, 1.5, 3),
        Point(2, 300, 4, 0.2, 1.5, 3),
        Point(4, 1000, 8, 0.4, 3.5, 3),
    ]


def test_undefined_metrics_are_left_out_of_a_curve() -> None:
    train = [
        {"kind": "train", "step": step, "generated_tokens": 5, "seconds": 1, "response_tokens": None, "steps": steps}
        for step, steps in ((1, None), (2, 3), (3, 5))
    ]
    (start, end) = curve([{"kind": "eval", "step": step, "pass_at_1": 0.1} for step in (0, 3)] + train)
    assert (end.steps, math.isnan(end.response_tokens)) == (4, True)
    assert rounded([start])[0]["response_tokens"] is None


def test_the_first_crossing_is_interpolated() -> None:
    assert position_of(0.3, points(0.1, 0.2, 0.4, 0.3)) == pytest.approx(1.5)
    assert position_of(0.1, points(0.1, 0.2)) == 0
    assert position_of(0.5, points(0.1, 0.2)) is None


def test_speedup_compares_the_tokens_to_the_final_accuracy_of_outcome_rewards() -> None:
    outcome = points(0.1, 0.2, 0.3)
    assert speedup(outcome, points(0.1, 0.3, 0.5)) == pytest.approx(200 / 100)
    assert speedup(outcome, points(0.1, 0.3, 0.5), further_tokens=300) == pytest.approx(200 / 400)
    assert speedup(outcome, points(0.1, 0.2, 0.29)) == 0
    assert speedup(points(0.3, 0.2), outcome) is None
    assert speedup(points(0.1, 0.12), points(0.13, 0.2)) is None, "the initial policy is as good, by chance"


def test_an_undefined_speedup_counts_as_zero_in_the_median_of_all_seeds() -> None:
    assert rl_modes.median_of([None, 3.0, 1.2]) == 1.2
    assert rl_modes.median_of([None, None, 3.0]) == 0
    assert rl_modes.median_of([2.0, 0.0, 1.6]) == 1.6


def test_lengths_are_compared_at_equal_accuracy() -> None:
    # The second run learns twice as fast: at an accuracy of 0.1 + x, it has lengths 20 + 5x against 10 + 10x.
    slow, fast = points(0.1, 0.2, 0.3, 0.4, 0.5), points(0.1, 0.3, 0.5, length=20)
    expected = [(20 + 5 * x) / (10 + 10 * x) for x in (0.08, 0.16, 0.24, 0.32, 0.4)]
    assert matched_ratio(slow, fast, lambda point: point.response_tokens) == pytest.approx(sum(expected) / 5)
    assert matched_ratio(points(0.5, 0.6), points(0.1, 0.4), lambda point: point.steps) is None
    assert matched_ratio(slow, points(0.1, 0.5, length=math.nan), lambda point: point.response_tokens) is None


def test_the_interval_of_ratios_is_that_of_their_logarithms() -> None:
    found = ratio_interval([math.exp(-0.1), math.exp(0.1)])
    assert found["value"] == pytest.approx(1)
    assert found["high"] == pytest.approx(math.exp(12.706 * 0.1 * math.sqrt(2) / math.sqrt(2)))
    assert ratio_interval([2.0])["high"] is None


def test_the_interval_of_a_mean_follows_students_t() -> None:
    # The standard error of 0.1, 0.2, 0.3 is 0.1 / √3.
    found = mean_interval([0.1, 0.2, 0.3])
    assert (found["value"], found["high"] - found["low"]) == pytest.approx((0.2, 2 * 4.303 * 0.1 / math.sqrt(3)))
    assert mean_interval([0.5]) == {"value": 0.5, "low": None, "high": None}


def test_accuracies_are_compared_after_equal_tokens() -> None:
    assert accuracy_after(150, points(0.1, 0.2, 0.4)) == pytest.approx(0.3)
    assert accuracy_after(0, points(0.1, 0.2)) == 0.1


def test_a_run_collapses_if_it_ends_early_or_loses_half_of_its_accuracy() -> None:
    def ended(step: int, accuracy: float | None) -> bool:
        return is_collapsed([{"step": 0, "pass_at_1": 0.4}, {"step": step, "pass_at_1": accuracy}], 40)

    assert (ended(40, 0.21), ended(40, 0.19), ended(20, 0.4), ended(40, None)) == (False, True, True, True)


class Commands:
    """Stands in for mmprm: records the commands and writes what the benchmark reads of their outputs."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.accuracy: dict[str, float] = {}
        """Maps the name of a run to its final accuracy."""
        self.most_steps = 99
        """Number of steps after which every run ends with `code`."""
        self.code = 2

    def __call__(self, command: list[str], log: Path) -> int:
        sets = dict(part.split("=", 1) for part in command if "=" in part)
        output = Path(sets.get("output", "unused"))
        if command[0] == "rl":
            self.ran.append(f"{log.parent.name}/{log.stem}")
            end = self.accuracy.get(log.stem.rpartition("-")[0], 0.5)
            write_metrics(output / "metrics.jsonl", min(int(sets["steps"]), self.most_steps), end)
            return self.code if self.most_steps < int(sets["steps"]) else 0
        elif command[0] == "annotate":
            output.mkdir(parents=True)
            (output / "summary.json").write_text(json.dumps({"tokens": 1000}))
        elif command[0] in ("sft", "train"):
            (output / {"sft": "policy", "train": "prm"}[command[0]]).mkdir(parents=True)
        return 0


def write_metrics(path: Path, steps: int, end: float) -> None:
    rows: list[dict[str, Any]] = [{"kind": "eval", "step": 0, "pass_at_1": 0.1, "pass_at_1_low": 0.1}]
    for step in range(1, steps + 1):
        train = {"generated_tokens": 50, "seconds": 1, "seconds_sync": 0.1, "overhead": 0.1, "staleness": 0}
        rows.append({"kind": "train", "step": step, "response_tokens": 9, "steps": 3, "partial": 0, **train})
        accuracy = 0.1 + (end - 0.1) * step / steps
        rows.append({"kind": "eval", "step": step, "pass_at_1": accuracy, "pass_at_1_low": accuracy})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def bench(tmp_path: Path, commands: Commands) -> Bench:
    return Bench(tmp_path, SMALL, execute=commands)


def test_finished_runs_are_reused_unless_their_keys_change(bench: Bench, commands: Commands) -> None:
    run = Run("short", "outcome", 0)
    bench.finish([run, run])
    bench.finish([run])
    assert commands.ran == ["short/outcome-0"]
    changed = replace(run, sets={"batch.updates": 2})
    bench.finish([changed])
    assert commands.ran == ["short/outcome-0"] * 2
    (bench.path(changed) / "done.json").unlink()
    bench.finish([changed])
    assert commands.ran == ["short/outcome-0"] * 3, "an interrupted run starts over"


def test_a_run_that_ends_early_is_repeated_unless_this_is_a_result(bench: Bench, commands: Commands) -> None:
    commands.most_steps = 1
    run = Run("short", "outcome", 0)
    with pytest.raises(RuntimeError, match=r"short/outcome-0 ended with exit code 2 before its last step; see .*\.log"):
        bench.finish([run])
    assert not bench.is_done(run)
    collapsing = Run("short", "ppo_clip", 0, may_end_early=True)
    bench.finish([collapsing])
    assert bench.is_done(collapsing)


@pytest.mark.parametrize(("steps", "code"), [(1, 0), (1, 1), (1, -9), (0, 2)])
def test_a_run_that_was_stopped_or_has_not_trained_is_no_result(
    bench: Bench, commands: Commands, steps: int, code: int
) -> None:
    """SIGTERM ends a run with 0, a crash with 1, and an engine that does not start with 2."""
    commands.most_steps, commands.code = steps, code
    run = Run("short", "ppo_clip", 0, may_end_early=True)
    with pytest.raises(RuntimeError, match=f"exit code {code} before its last step"):
        bench.finish([run])
    assert not bench.is_done(run)


def test_a_run_that_an_error_has_ended_has_no_final_accuracy(bench: Bench, commands: Commands) -> None:
    commands.most_steps = 1
    bench.finish(surrogate_runs(bench, "cpgd"))
    assert measure_surrogate(bench, "cpgd")["0.0001"] == {"accuracy": [None], "collapsed": 1}
    commands.most_steps = 99
    bench.finish(surrogate_runs(bench, "ppo_clip"))
    found = measure_cpgd(bench)
    assert (found["cpgd"], found["rloo"], found["collapsed_cpgd"]) == (0.0, 0.5, 1)


def test_runs_with_a_prm_use_that_of_their_level(bench: Bench) -> None:
    for level, policy, prm in (("long", "long/sft/policy", "long/train/prm"), ("weak", "tiny", "weak/train/prm")):
        run = Run(level, "soft_min", 0, {PRM_KEY: PRM})
        bench.finish([run])
        sets = json.loads((bench.path(run) / "done.json").read_text())["sets"]
        assert sets[PRM_KEY] == str(bench.folder / prm)
        assert sets["engine.model"] == (policy if policy == "tiny" else str(bench.folder / policy))


def test_the_best_mode_is_measured_on_fresh_seeds(bench: Bench, commands: Commands) -> None:
    commands.accuracy = {"delta": 0.9, "pure": 1.0}
    rl.measure(bench, "long")
    assert [label for label in commands.ran if label.endswith("-1")] == [
        "long/outcome-1",
        "long/delta-1",
        "long/tree-1",
    ]
    found = json.loads(bench.results.read_text())["long"]
    assert (found["mode"], found["prm_speedup"]) == ("delta", pytest.approx(2.0))
    assert found["prm_speedup_all_in"] == pytest.approx(100 / (50 + 1000))
    assert set(json.loads((bench.folder / "rl_curves.json").read_text())["long"]) >= set(rl_modes.MODES)


def test_progress_is_compared_with_the_value(bench: Bench, commands: Commands) -> None:
    bench.sizes = replace(bench.sizes, seeds=(0, 1))
    commands.accuracy = {"delta": 0.3, "progress": 0.4}
    rl.measure(bench, "progress_vs_value")
    found = json.loads(bench.results.read_text())["progress_vs_value"]
    assert (found["before"], found["after"]) == (pytest.approx(0.1), {"delta": [0.3, 0.3], "progress": [0.4, 0.4]})
    assert found["difference"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})


def test_every_part_is_measured_from_its_runs(bench: Bench, commands: Commands) -> None:
    for name in rl.PARTS:
        if name not in ("vs_trl", "hack"):  # these execute something else
            rl.measure(bench, name)
    assert len(commands.ran) == len(set(commands.ran))
    details = json.loads((bench.folder / "rl_details.json").read_text())
    assert set(details["met"]) >= {"long", "short", "bias", "async", "cispo", "gspo", "cpgd", "ppo_clip"}


def test_status_lists_what_is_missing(bench: Bench) -> None:
    parts = {name: rl.PARTS[name] for name in ("overhead", "sync", "async")}
    bench.finish([Run("short", "outcome", 0)])
    lines = status(bench, parts).splitlines()
    assert [line.split()[:4] for line in lines[:3]] == [
        ["overhead", "1", "of", "1"],
        ["sync", "1", "of", "1"],
        ["async", "0", "of", "3"],
    ]
    assert "next short/staleness-0-0" in lines[2]


@pytest.mark.parametrize("name", [name for name in rl.PARTS if name not in ("vs_trl", "hack")])
def test_the_keys_of_every_run_are_valid(bench: Bench, name: str) -> None:
    from mmprm.config import load
    from policy_rl.config import RLConfig

    runs = rl.PARTS[name].runs(bench)
    found = []
    for run in runs:
        sets = [f"{key}={value}" for key, value in bench._sets(run).items()]
        found.append(load(RLConfig, rl.ROOT / "configs" / "rl" / "tiny.yaml", [*sets, "output=unused"]))
    assert found
    assert [config.seed for config in found] == [run.seed for run in runs]
