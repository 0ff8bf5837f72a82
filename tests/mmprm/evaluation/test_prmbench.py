"""Test PRMBench: its layout, its PRM score, and the comparison of scorers on one data set."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli import eval as command
from mmprm.cli.main import main
from mmprm.errors import DataError
from mmprm.evaluation.labeled import LabeledSolution, Options, read_labeled
from mmprm.evaluation.prm_evaluation import PrmEvaluation, judge
from mmprm.evaluation.prmbench import CATEGORY_GROUPS, prm_score
from mmprm.metrics import Interval
from mmprm.prm.info import PrmInfo
from mmprm.report.prm_evaluation import prm_evaluation_page
from mmprm.types import Solution, StepScores


def record(category: str, scores: Sequence[float], errors: Sequence[int], idx: str = "p1_0") -> dict[str, Any]:
    """Return a record whose steps are their scores."""
    steps = [str(score) for score in scores]
    questions = {"original_question": "q", "modified_question": f"q of {idx}", "question": "q"}
    processes = {"original_process": ["0.1"], "modified_process": steps, "modified_steps": list(errors)}
    return {**questions, **processes, "error_steps": list(errors), "idx": idx, "classification": category}


def read(*records: dict[str, Any]) -> list[LabeledSolution]:
    return read_labeled("prmbench", ((f"f:{i}", each) for i, each in enumerate(records)), Path(), "f", Options())


def judged(*records: dict[str, Any]) -> PrmEvaluation:
    """Judge each step by the score that it states, with the published threshold."""
    scored = [(each, StepScores(tuple(map(float, each.solution.steps)))) for each in read(*records)]
    return judge("prmbench", "prm_score", scored, threshold=0.5)


def test_errors_are_numbered_from_one_and_ignored_beyond_the_last_step() -> None:
    (found,) = read(record("circular", (0.9, 0.8, 0.1), (3, 4)))
    assert found.correct == (True, True, False)
    assert found.source == "circular"
    assert found.solution.problem.question == "q of p1_0"


def test_an_error_step_that_is_no_number_is_refused_rather_than_ignored() -> None:
    with pytest.raises(DataError, match=r"f:0: .*error_steps=\['2'\] must be numbers of steps"):
        read(record("circular", (0.9, 0.1), ()) | {"error_steps": ["2"]})


def test_a_solution_that_occurs_twice_counts_once() -> None:
    rows = [record("circular", (0.9,), ()), record("deception", (0.8,), ()), record("circular", (0.7,), ())]
    assert [each.solution.steps for each in read(*rows)] == [("0.9",), ("0.8",)]


def test_prm_score_by_hand() -> None:
    # correct: 2 hits of 3 predictions and 2 members, F1 4/5; incorrect: 1 hit of 1 prediction and 2 members, F1 2/3.
    assert prm_score([1, 1, 1, 0], [1, 1, 0, 0]).f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    one_kind = prm_score([1, 1, 0, 1], [1, 1, 1, 1])
    assert one_kind.f1 == pytest.approx(6 / 7)
    assert math.isnan(one_kind.on_incorrect)


def test_overall_score_categories_and_groups() -> None:
    rows = [
        record("redundency", (0.9, 0.9, 0.1), (3,)),  # 1
        record("circular", (0.9, 0.9, 0.9, 0.1), (3, 4), idx="p1_1"),  # 11/15, as above
        record("multi_solutions", (0.9, 0.9, 0.1, 0.9), (), idx="p1_2"),  # 6/7
    ]
    result = judged(*rows)
    values = {name: metrics.f1.value for name, metrics in result.sources.items() if metrics.f1 is not None}
    assert values == pytest.approx({"redundency": 1.0, "circular": 11 / 15, "multi_solutions": 6 / 7})
    # All steps together: 7 of 8 correct and 2 of 3 incorrect ones are found, with 8 and 3 predictions.
    assert result.f1 is not None
    assert result.f1.value == pytest.approx((7 / 8 + 2 / 3) / 2)
    (group,) = result.groups.items()
    assert group[0] == "simplicity"
    assert group[1].value == pytest.approx((1 + 11 / 15) / 2)


def test_every_category_is_in_one_group() -> None:
    categories = [name for group in CATEGORY_GROUPS.values() for name in group]
    assert len(categories) == len(set(categories)) == 9


class StatedScorer:
    """Scores each step by the number that it states."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(map(float, solution.steps))) for solution in solutions]

    def close(self) -> None: ...


def test_the_command_keeps_named_results_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "open_scorer", lambda config: StatedScorer())
    monkeypatch.setattr(command, "scorer_info", lambda config: PrmInfo())
    (tmp_path / "a.jsonl").write_text(json.dumps(record("circular", (0.9, 0.9, 0.1), (3,))) + "\n")
    sets = ["--set=scorer.prm=p", f"--set=output={tmp_path}", "--set=threshold=0.5"]
    for name in ("small", "large"):
        assert main(["eval", "prmbench", str(tmp_path / "a.jsonl"), *sets, f"--set=name={name}"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"source +PRM score +on_correct +on_incorrect +solutions\n", printed)
    assert re.search(r"circular +1\.000", printed)
    result = json.loads((tmp_path / "prmbench-small.json").read_text())
    assert (result["name"], result["scored"], result["tokens"]) == ("small", 1, None)
    page = (tmp_path / "report.html").read_text()
    for heading in ("prmbench small", "prmbench large", "prmbench: cost and quality"):
        assert f"<h2>{heading}</h2>" in page
    assert main(["eval", "prmbench", str(tmp_path / "a.jsonl"), *sets, "--set=name=a/b"]) == 2
    assert "name" in capsys.readouterr().err


@functools.cache
def one_evaluation() -> PrmEvaluation:
    return judged(record("circular", (0.9, 0.1), (2,)))


def evaluation(name: str, tokens: int | None, f1: float) -> PrmEvaluation:
    """Return an evaluation of four solutions that took two seconds; tokens=None stands for a process reward model."""
    base = one_evaluation()
    pooled = replace(base.pooled, f1=Interval(f1, f1, f1))
    costs = {"tokens": tokens, "scored": 4, "seconds": 2.0}
    return replace(base, name=name, scored_by="prm" if tokens is None else "judge", pooled=pooled, **costs)


def test_costs_are_given_per_1000_solutions_and_plotted() -> None:
    results = [evaluation("prm", None, 0.6), evaluation("one", 400, 0.7), evaluation("eight", 3200, 0.8)]
    assert [result.tokens_per_solution for result in results] == [0, 100, 800]
    page = prm_evaluation_page(results, None)
    section = page[page.index("cost and quality") :]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>.*?</tr>", section, re.DOTALL)[1:]]
    assert [(row[1], row[-3:]) for row in rows] == [
        ("prm", ["0", "500", "0"]),
        ("one", ["100,000", "500", "0"]),
        ("eight", ["800,000", "500", "0"]),
    ]
    assert section.count("<svg") == 1
    figure = re.findall(r"<text[^>]*>([^<]+)</text>", section)
    assert {"generated tokens per solution", "0", "100", "prm", "one", "eight"} <= set(figure)
