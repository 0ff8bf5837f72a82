"""Test how the benchmark of RL over turns compares runs, and that it reuses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import agents
from benchmarks.agents import SMALL, Bench, episodes_to, learning_curve, median_ratio, rl_gain, sample_ratio

SLOW = [(0, 0.4), (100, 0.5), (200, 0.8)]
FAST = [(0, 0.4), (100, 0.8), (200, 0.7)]
FLAT = [(0, 0.4), (100, 0.4), (200, 0.4)]


def test_a_curve_is_a_line_between_evaluations() -> None:
    assert episodes_to(0.65, SLOW) == pytest.approx(150)
    assert episodes_to(0.4, SLOW) == 0
    assert episodes_to(0.9, SLOW) is None
    assert episodes_to(0.8, FAST) == 100


def test_methods_are_compared_by_the_episodes_to_the_same_rate() -> None:
    assert median_ratio([SLOW], [FAST]) == 0.5
    assert median_ratio([SLOW] * 3, [FAST, SLOW, FLAT]) == 1
    assert median_ratio([SLOW], [FLAT]) is None, "never reached"
    assert median_ratio([FLAT], [FAST]) is None, "outcome rewards gain nothing"


def test_continuations_count_as_episodes() -> None:
    """Two steps of 10 episodes, in the second of which 3 turns are continued twice."""
    evaluations = [{"kind": "eval", "step": step, "pass_at_1": step / 10} for step in (0, 1, 2)]
    steps = [{"kind": "train", "step": 1}, {"kind": "train", "step": 2, "branches": 3.0}]
    assert learning_curve([*evaluations, *steps], 10) == [(0, 0), (10, 0.1), (26, 0.2)]


class Commands:
    """Stands in for mmprm rl: the solve rate rises with each evaluation, and faster with credit."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, command: list[str], log: Path) -> int:
        output = Path(next(part for part in command if part.startswith("output=")).removeprefix("output="))
        self.names.append(output.name)
        output.mkdir(parents=True)
        rise = 0.4 if any("credit.source" in part for part in command) else 0.2
        rows = [{"kind": "eval", "step": step, "pass_at_1": min(0.8, 0.4 + rise * step)} for step in (0, 1, 2)]
        rows += [{"kind": "train", "step": step} for step in (1, 2)]
        (output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return 0


def test_runs_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "make_sokoban_problems", lambda count, *rest: [])
    commands = Commands()
    bench = Bench(tmp_path, Path("policy"), tmp_path / "no-prm", SMALL, commands)
    gain = rl_gain(bench)
    assert (gain["value"], gain["before"], gain["after"]) == pytest.approx((0.4, 0.4, 0.8))
    found = sample_ratio(bench)
    assert commands.names == ["outcome-0", "environment-0", "gigpo-0", "tree-0"]
    assert found["ratios"] == {"outcome": 1.0, "environment": 0.5, "gigpo": 0.5, "tree": 0.5}
    assert found["value"] == 0.5, "that of the tree, because there is no PRM"
    (tmp_path / "gigpo-0" / "done.json").write_text(json.dumps({"sets": {}}))
    assert sample_ratio(bench)["ratios"] == found["ratios"]
    assert commands.names[4:] == ["gigpo-0"], "a run with other keys is made again"
