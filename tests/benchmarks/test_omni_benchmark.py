"""Test how the benchmark of clips compares policies, and that it reuses its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.omni import FOUR, PARTS, SMALL, Bench, bon, needs_both, rl_gain, shares_correct
from benchmarks.parts import Part, run_parts


def candidate(clip: str, verdict: str) -> str:
    return json.dumps({"problem_id": clip, "verdict": verdict}) + "\n"


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


SUMMARY: dict[str, Any] = {
    "accuracy": {"prm": 0.9, "majority": 0.75},
    "accuracy_at_n": [
        {"n": 1, "minus_majority": {"prm": interval(0.0), "weighted": interval(0.0)}},
        {"n": 4, "minus_majority": {"prm": interval(0.15), "weighted": interval(0.2)}},
    ],
    "aggregator": "min",
    "problems": 8,
}


class Commands:
    """Stands in for mmprm: half of the samples are correct before RL, and three quarters after it."""

    def __init__(self, fails: str = "") -> None:
        self.names: list[str] = []
        self.fails = fails

    def __call__(self, words: list[str], log: Path) -> int:
        output = Path(next(word for word in words if word.startswith("output=")).removeprefix("output="))
        self.names.append(output.stem)
        if output.stem == self.fails:
            return 1
        if output.suffix == "":
            output.mkdir(exist_ok=True)
            correct = 3 if output.name == "after" else 2
            lines = [candidate(clip, "correct" if n < correct else "unknown") for clip in "ab" for n in range(4)]
            (output / "candidates.jsonl").write_text("".join(lines))
            (output / "summary.json").write_text(json.dumps(SUMMARY))
        return 0


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setattr("benchmarks.omni.make_omni_problems", lambda *_: [])
    return Commands()


def test_an_unknown_verdict_is_incorrect(tmp_path: Path) -> None:
    lines = [candidate("a", "correct"), candidate("b", "incorrect"), candidate("a", "unknown")]
    (tmp_path / "candidates.jsonl").write_text("".join(lines))
    assert shares_correct(tmp_path) == {"a": 0.5, "b": 0.0}


def test_the_gain_is_paired_by_clip_and_runs_are_reused(tmp_path: Path, commands: Commands) -> None:
    bench = Bench(tmp_path, Path("policy"), SMALL, commands)
    found = rl_gain(bench)
    assert (found["before"], found["after"], found["value"]) == (0.5, 0.75, 0.25)
    assert found["interval"] == [0.25, 0.25]
    assert PARTS["rl_gain"].is_met(found)
    assert commands.names == ["before", "rl", "after"]
    rl_gain(bench)
    assert len(commands.names) == 3
    rl_gain(Bench(tmp_path, Path("other"), SMALL, commands))
    assert commands.names[3:] == ["before", "rl", "after"], "runs with another policy, and what reads them"


def test_best_of_n_is_that_of_the_most_samples(tmp_path: Path, commands: Commands) -> None:
    found = bon(Bench(tmp_path, Path("policy"), SMALL, commands))
    assert commands.names == ["annotate", "labels", "train", "development", "bon"]
    assert (found["value"], found["interval"], found["n"]) == (0.15, [pytest.approx(0.05), 0.25], 4)
    assert found["weighted"]["value"] == 0.2


def test_a_failed_run_stops_the_benchmark_and_resumes(tmp_path: Path, commands: Commands) -> None:
    commands.fails = "labels"
    bench = Bench(tmp_path, Path("policy"), SMALL, commands)
    with pytest.raises(RuntimeError, match=r"labels ended with exit code 1; see .*labels\.log"):
        bon(bench)
    commands.fails = ""
    bon(bench)
    assert commands.names == ["annotate", "labels", "labels", "train", "development", "bon"]


def test_accuracy_is_compared_to_the_better_modality() -> None:
    correct = {
        "greedy_accuracy": [True, True, True, False],
        "video_only": [True, False, False, False],
        "audio_only": [True, True, False, False],
    }
    found = needs_both(correct)
    assert (found["value"], found["video_only"], found["audio_only"], found["clips"]) == (0.25, 0.25, 0.5, 4)
    assert found["interval"] == [0.0, 0.75]
    assert PARTS["accuracy"].is_met(found)
    assert not PARTS["accuracy"].is_met(found | {"value": 0.19})


def test_results_are_merged(tmp_path: Path) -> None:
    output = tmp_path / "omni.json"
    output.write_text(json.dumps({"bon": 0.1, "details": {"bon": {"n": 8}}}))
    run_parts({"one": Part(lambda bench: {"value": bench, "n": 3}, "1", lambda found: True)}, ["one"], 7, output, True)
    results = json.loads(output.read_text())
    assert (results["bon"], results["one"]) == (0.1, 7)
    assert results["details"] == {"bon": {"n": 8}, "one": {"n": 3, "bar": "1", "met": True, "small": True}}


def test_a_part_without_a_value_misses_its_target(tmp_path: Path) -> None:
    never = Part(lambda bench: {"value": None}, "at most 1", lambda found: found["value"] <= 1)
    run_parts({"never": never}, ["never"], None, tmp_path / "a.json", False)
    results = json.loads((tmp_path / "a.json").read_text())
    assert (results["never"], results["details"]["never"]["met"]) == (None, False)


def test_the_media_with_a_target_are_measured() -> None:
    from benchmarks.omni_mismatch import media_problems

    assert set(FOUR) < set(media_problems())
