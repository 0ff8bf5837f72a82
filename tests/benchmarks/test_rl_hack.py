"""Test the part `hack` of the RL benchmark: its figures on worked values, and that its runs are valid."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from rl_hack import MODES, alarm_step, fallen, hack_runs, holds, measure_hack, refreshes
from rl_levels import FULL, SMALL
from rl_runs import Bench

from mmprm.config import load
from policy_rl.checks.early import check_early
from policy_rl.config import RLConfig


def test_a_run_is_hacked_if_accuracy_falls_while_scores_rise() -> None:
    ends = {
        "before": [0.4, 0.4, 0.4, 0.4],
        "after": [0.3, 0.3, 0.5, 0.4],
        "prm_score": [[0.5, 0.9], [0.5, 0.4], [0.5, 0.9], [0.5, 0.9]],
    }
    assert fallen(ends) == 1


def test_an_alarm_needs_three_steps_in_a_row() -> None:
    values = [0.5, 0.5, 0.7, 0.5, None, 0.5, 0.5, 0.5]
    steps = [{"step": step, "prm_auc": value, "accuracy": step / 10} for step, value in enumerate(values, start=1)]
    assert alarm_step(steps) == {"step": 7, "accuracy": 0.7}, "a step without an AUC neither counts nor resets"
    assert alarm_step(steps[:6]) is None


def test_the_auc_after_the_first_new_prm_is_that_of_new_labels() -> None:
    rows = [(0.7, 0), (0.6, 0), (None, 1), (0.9, 1), (0.5, 1), (None, 2)]
    steps = [{"prm_tree_auc": auc, "prm_refreshes": count} for auc, count in rows]
    never = [{"prm_tree_auc": 0.95, "prm_refreshes": 0}]
    found = refreshes([steps, never])
    assert found == {"refreshes": [2, 0], "auc_before": [0.6, 0.95], "auc_after": [0.9, None]}


@pytest.mark.parametrize(
    ("fell", "after", "auc", "unfinished", "expected"),
    [
        (2, 0.5, 0.85, 0, True),
        (1, 0.5, 0.9, 0, False),
        (3, 0.39, 0.9, 0, False),
        (2, 0.4, 0.84, 0, False),
        (2, 0.4, None, 0, False),
        (2, 0.5, 0.85, 1, False),
    ],
)
def test_the_bar(fell: int, after: float, auc: float | None, unfinished: int, expected: bool) -> None:
    refresh = {"before": [0.4, 0.4], "after": [0.4, after], "auc_after": [0.9, auc], "unfinished": unfinished}
    assert holds({"frozen": {"fell": fell}, "refresh": refresh}) == expected


def test_the_runs_of_all_sizes_are_valid(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "rl" / "tiny.yaml"
    for sizes in (FULL, SMALL):
        bench = Bench(tmp_path, sizes)
        runs = hack_runs(bench)
        assert len(runs) == len(MODES) * len(sizes.seeds)
        for run in runs:
            sets = [f"{key}={value}" for key, value in bench._sets(run).items()]
            made = load(RLConfig, config, sets)
            assert (made.process.refresh is not None) == (run.name == "refresh")
            check_early(made)
            assert made.process.scorer.prm == str(tmp_path / "weak" / "train" / "prm")


def test_a_run_that_an_error_has_ended_is_unfinished(tmp_path: Path) -> None:
    def execute(command: list[str], log: Path) -> int:
        sets = dict(part.split("=", 1) for part in command if "=" in part)
        output = Path(sets.get("output", "unused"))
        if command[0] == "rl":
            scores = {"prm_score": 0.4, "prm_auc": 0.5, "prm_tree_auc": 0.9, "prm_refreshes": 0}
            train = {"kind": "train", "step": 1, "updates": 1, "accuracy": 0.4, **scores}
            ends = [{"kind": "eval", "step": step, "pass_at_1": 0.4} for step in (0, 1)]
            rows = [ends[0], train, ends[1]]
            (output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif command[0] == "train":
            (output / "prm").mkdir(parents=True)
        return 2 if command[0] == "rl" else 0

    bench = Bench(tmp_path, SMALL, execute=execute)
    bench.finish(hack_runs(bench))
    assert measure_hack(bench)["refresh"]["unfinished"] == 1


def test_measurement(tmp_path: Path) -> None:
    """Every run's accuracy ends at 0.3 while its scores rise; the commands of the level only leave their outputs."""

    def execute(command: list[str], log: Path) -> int:
        sets = dict(part.split("=", 1) for part in command if "=" in part)
        output = Path(sets.get("output", "unused"))
        if command[0] == "rl":
            rows: list[dict[str, Any]] = [{"kind": "eval", "step": 0, "pass_at_1": 0.4}]
            for step in (1, 2, 3):
                score, auc = (0.4 + step / 10, 0.5) if step < 3 else (None, None)  # no response could be scored
                scores = {"prm_score": score, "prm_auc": auc, "prm_tree_auc": 0.9, "prm_refreshes": step - 1}
                rows.append({"kind": "train", "step": step, "updates": 1, "accuracy": 0.4, **scores})
            rows.append({"kind": "eval", "step": 3, "pass_at_1": 0.3})
            (output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif command[0] == "train":
            (output / "prm").mkdir(parents=True)
        return 0

    bench = Bench(tmp_path, replace(SMALL, steps=3), execute=execute)
    bench.finish(hack_runs(bench))
    found = measure_hack(bench)
    ends = {"before": [0.4], "after": [0.3], "prm_score": [[0.55, 0.55]], "unfinished": 0, "fell": 0}
    assert found["frozen"] == ends
    assert found["alarm"] == [None]
    assert found["refresh"]["auc_after"] == [0.9]
    assert found["curves"]["mixed"] == {"pass_at_1": [[0, 0.4], [3, 0.3]], "prm_score": [[1, 0.5], [2, 0.6]]}
