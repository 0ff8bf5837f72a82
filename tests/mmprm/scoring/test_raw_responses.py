"""Test `mmprm score` on raw model responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli import score
from mmprm.cli.main import main
from mmprm.prm.info import PrmInfo
from mmprm.types import Solution, StepScores

TAGGED = "<step>a</step><step>bb</step><answer>5</answer>"


class LengthScorer:
    """Scores each step by 1 / length."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(1 / len(step) for step in solution.steps)) for solution in solutions]

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "open_scorer", lambda config: LengthScorer())
    monkeypatch.setattr(score, "scorer_info", lambda config: PrmInfo(aggregator="min"))


def scored(tmp_path: Path, rows: Sequence[dict[str, Any]], *sets: str) -> list[dict[str, Any]]:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    options = [word for each in ("scorer.prm=p", *sets) for word in ("--set", each)]
    assert main(["score", str(tmp_path / "in.jsonl"), "--output", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_response_is_cut_into_its_plain_steps(tmp_path: Path) -> None:
    (row,) = scored(tmp_path, [{"question": "q", "response": TAGGED}])
    assert row == {
        "question": "q",
        "response": TAGGED,
        "steps": ["a", "bb", "<answer>5</answer>"],
        "unsplit": None,
        "scores": [1.0, 0.5, 1 / 18],
        "aggregate": 1 / 18,
        "aggregator": "min",
    }


@pytest.mark.parametrize(
    ("step_format", "text"), [("blank_lines", "a\n\nbb\n\nccc"), ("numbered", "1. a\n2. bb\n3. ccc")]
)
def test_other_step_formats_are_named(tmp_path: Path, step_format: str, text: str) -> None:
    (row,) = scored(tmp_path, [{"question": "q", "response": text}], f"step_format={step_format}")
    assert (row["steps"], row["scores"]) == (["a", "bb", "ccc"], [1.0, 0.5, 1 / 3])


def test_several_responses_have_an_entry_each_and_the_best_is_chosen(tmp_path: Path) -> None:
    texts = ["<step>ccc</step><answer>", "no steps", TAGGED.replace("5", "55"), TAGGED]
    first, second = scored(tmp_path, [{"question": "q", "responses": texts}, {"question": "q", "steps": ["dddd"]}])
    assert first["scores"] == [None, None, [1.0, 0.5, 1 / 19], [1.0, 0.5, 1 / 18]]
    assert (first["aggregate"], first["chosen"]) == ([None, None, 1 / 19, 1 / 18], 3)
    assert (first["unsplit"], first["steps"][:2]) == (["unclosed answer", "no step", None, None], [[], []])
    assert (second["scores"], second["aggregate"]) == ([0.25], 0.25)


def test_none_is_chosen_if_no_response_has_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = scored(tmp_path, [{"question": "q", "responses": ["x", "y"]}])
    assert (row["chosen"], row["aggregate"]) == (None, [None, None])
    assert "2 responses could not be split into steps with step_format=tags" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": 3}, "response must be a text, got '3'"),
        ({"responses": "x"}, "responses must be a list of at least one text"),
        ({"responses": ["x", None]}, "responses must be a list of at least one text"),
        ({"responses": ["x"], "response": "x"}, "has both response and responses"),
        ({"responses": ["x"], "steps": ["x"]}, "has both steps and responses"),
        ({}, "steps must be a list of at least one text, got 'None'; or give response, or responses"),
    ],
)
def test_an_invalid_last_line_is_reported_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], row: dict, message: str
) -> None:
    monkeypatch.setattr(score, "open_scorer", lambda config: pytest.fail("loaded"))
    lines = [{"question": "q", "steps": ["a"]}, {"question": "q"} | row]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["score", str(tmp_path / "in.jsonl"), "--set", "scorer.prm=p"]) == 2
    error = capsys.readouterr().err
    assert f"in.jsonl:2: {message}" in error


def test_thoughts_and_final_answer_are_also_aggregated_apart(tmp_path: Path) -> None:
    open_ended = "ccccc\n\nWait, no."
    rows = [
        {"question": "q", "response": f"<think>\n{open_ended}\n</think>\n\ndd"},
        {"question": "q", "response": open_ended},
        {"question": "q", "responses": [open_ended, " "]},
    ]
    whole, cut, several = scored(tmp_path, rows, "step_format=thoughts", "aggregator=max")
    assert whole["steps"] == ["<think>\nccccc", "Wait, no.\n</think>", "dd"]
    assert (whole["aggregate"], whole["thoughts_aggregate"], whole["answer_aggregate"]) == (1 / 2, 1 / 13, 1 / 2)
    assert (cut["thoughts_aggregate"], cut["answer_aggregate"]) == (1 / 5, None)
    assert (several["thoughts_aggregate"], several["answer_aggregate"]) == ([1 / 5, None], [None, None])
