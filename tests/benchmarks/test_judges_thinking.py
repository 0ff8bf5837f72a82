"""Test how the benchmark of thinking judges counts first errors, unknown solutions and tokens, and keeps results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import judges
from benchmarks.judges_thinking import chance_f1, summarize

LABELS = (1, 1, -1, -1)


def rows(*scores: tuple[float, ...] | None, tokens: int | None = None) -> list[dict[str, Any]]:
    return [
        {"id": str(index), "label": label, "scores": None if each is None else list(each), "tokens": tokens}
        for index, (label, each) in enumerate(zip(LABELS, scores, strict=True))
    ]


def test_f1_tokens_and_differences() -> None:
    perfect = rows((1, 0), (1, 0), (1, 1), (1, 1), tokens=80)
    # One of two errors is found, and one of two correct solutions is unknown: F1 = 0.5.
    half = rows((1, 0), (0, 0), (1, 1), None, tokens=10)
    tied = rows((1, 0.5), (1, 0.4), (1, 1), (1, 0.5), tokens=80)  # F1 = 2 · 0.5 · 1 / 1.5
    low = rows((0.9, 0.2), (0.9, 0.2), (0.9, 0.3), (0.9, 0.3))
    found = {
        "prm": (low, 0.25),
        "sft_1": (half, 0.5),
        "sft_8": (tied, 0.5),
        "rl_1": (half, 0.5),
        "rl_8": (perfect, 0.5),
    }
    metrics = summarize(found)
    assert {name: metrics[name]["f1"]["value"] for name in found} == pytest.approx(
        {"prm": 1.0, "sft_1": 0.5, "sft_8": 0.6667, "rl_1": 0.5, "rl_8": 1.0}
    )
    assert {name: metrics[name]["tokens"] for name in found} == {
        "prm": 0,
        "sft_1": 10,
        "sft_8": 80,
        "rl_1": 10,
        "rl_8": 80,
    }
    assert (metrics["rl_1"]["unknown"], metrics["rl_8"]["unknown"]) == (1, 0)
    values = {name: difference["value"] for name, difference in metrics["differences"].items()}
    assert values == pytest.approx(
        {"sft_8 - sft_1": 0.1667, "rl_8 - rl_1": 0.5, "rl_1 - sft_1": 0.0, "rl_8 - sft_8": 0.3333}, abs=1e-3
    )


def test_the_best_guess_names_the_most_frequent_first_error_often_enough() -> None:
    assert chance_f1([0, 2, 2, 5, -1]) == pytest.approx(2 * 0.5 / (1 + 0.5**0.5) ** 2)
    shares = [(1 - q / 1000, q / 1000) for q in range(1, 1000)]
    f1 = [2 * (error * 0.5) * none / (error * 0.5 + none) for error, none in shares]
    assert chance_f1([0, 2, 2, 5, -1]) == pytest.approx(max(f1), abs=1e-5)


def test_judges_that_know_nothing_miss_the_target() -> None:
    _, is_met = judges.BARS["thinking"]
    same = {"differences": {"rl_1 - sft_1": {"value": 0, "low": 0, "high": 0}}, "chance": 0.25}
    assert not is_met(same | {"sft_1": {"f1": {"value": 0.2, "low": 0.15, "high": 0.25}}})
    assert is_met(same | {"sft_1": {"f1": {"value": 0.6, "low": 0.55, "high": 0.65}}})


def test_results_of_a_part_are_kept_when_the_next_one_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"made_up": 0, "outputs": 2, "counted": 2, "well_formed": 1, "well_formed_scored": 1}

    def killed(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(judges, "PARTS", {"malformed": lambda *_: found, "thinking": killed})
    monkeypatch.setattr(sys, "argv", ["judges.py", "--small", "--work", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        judges.main()
    assert json.loads((tmp_path / "judges.json").read_text()) == {"malformed": found}
    assert json.loads((tmp_path / "judges_details.json").read_text())["met"] == {"malformed": True}
