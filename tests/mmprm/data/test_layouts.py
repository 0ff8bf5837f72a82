"""Test rows of GSM8K, SVAMP and MATH as published: question, answer, solution, and which columns are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprm.data.layouts import last_box
from mmprm.errors import DataError
from mmprm.problems import Columns, ProblemsConfig, load_problems
from mmprm.types import Problem

SHARED = Path(__file__).parents[4] / "shared" / "data"
GSM8K_SOLUTION = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all, 48+24 = <<48+24=72>>72.\n#### 72"


def load(folder: Path, row: dict[str, Any], **columns: Any) -> Problem:
    (folder / "p.jsonl").write_text(json.dumps(row) + "\n")
    (problem,) = load_problems(ProblemsConfig(path=str(folder / "p.jsonl"), columns=Columns(**columns)))
    return problem


def test_the_answer_of_gsm8k_follows_four_hashes(tmp_path: Path) -> None:
    problem = load(tmp_path, {"question": "How many clips?", "answer": GSM8K_SOLUTION})
    assert (problem.question, problem.answer, problem.solution) == ("How many clips?", "72", GSM8K_SOLUTION)
    thousands = load(tmp_path, {"question": "How much?", "answer": "It is 1,000.\n#### 1,000 \n"})
    assert thousands.answer == "1,000"


def test_a_gsm8k_row_with_its_solution_elsewhere_is_left_alone(tmp_path: Path) -> None:
    row = {"question": "How many clips?", "answer": "72", "solution": GSM8K_SOLUTION}
    assert (load(tmp_path, row).answer, load(tmp_path, row).solution) == ("72", GSM8K_SOLUTION)
    configured = load(tmp_path, {"question": "How many?", "answer": GSM8K_SOLUTION}, answer="answer")
    assert configured.answer == GSM8K_SOLUTION


@pytest.mark.parametrize("answer", [145.0, "145.0", 145])
def test_a_question_of_svamp_has_its_body(tmp_path: Path, answer: Any) -> None:
    row = {"ID": "chal-7", "Body": "Ann has 150 pens.", "Question": "How many are left if she loses 5?"}
    row |= {"Equation": "( 150.0 - 5.0 )", "Answer": answer, "Type": "Subtraction"}
    problem = load(tmp_path, row | {"question_concat": "Ann has 150 pens. How many are left if she loses 5?"})
    assert problem.question == "Ann has 150 pens. How many are left if she loses 5?"
    assert (problem.id, problem.answer) == ("chal-7", "145")
    assert dict(problem.extra) == {"Equation": "( 150.0 - 5.0 )", "Type": "Subtraction"}


def test_a_fraction_of_svamp_is_not_shortened(tmp_path: Path) -> None:
    row = {"Body": "Half of 5 pens are red.", "Question": "How many?", "Answer": 2.5}
    assert load(tmp_path, row).answer == "2.5"


def test_the_answer_of_math_is_its_last_box(tmp_path: Path) -> None:
    solution = r"First \boxed{1}. Then $\boxed{\frac{3}{\sqrt{4}}}$."
    row = {"problem": "What is it?", "level": "Level 5", "type": "Algebra", "solution": solution}
    problem = load(tmp_path, row)
    assert (problem.answer, problem.solution) == (r"\frac{3}{\sqrt{4}}", solution)
    assert dict(problem.extra) == {"level": "Level 5", "type": "Algebra"}


def test_math_500_states_its_answer(tmp_path: Path) -> None:
    row = {"problem": "What is it?", "solution": r"\boxed{6 - 5i}", "answer": "6-5i", "unique_id": "test/1.json"}
    assert (load(tmp_path, row).answer, load(tmp_path, row).id) == ("6-5i", "test/1.json")


def test_a_solution_without_a_box_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no answer"):
        load(tmp_path, {"problem": "What is it?", "solution": r"It is 5, or \boxed{6"})


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{a \{1, 2\} b}", r"a \{1, 2\} b"),
        (r"\fbox{7} and \boxed{8", "7"),
        (r"\boxed {9}", "9"),
        ("none", ""),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_balanced_box(text: str, box: str) -> None:
    assert last_box(text) == box


@pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="the shared problems are not here")
def test_real_gsm8k_solutions_end_with_their_answers(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SHARED / "gsm8k" / "problems.jsonl").read_text().splitlines()]
    published = [{"question": row["question"], "answer": row["solution"]} for row in rows]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in published))
    problems = load_problems(ProblemsConfig(path=str(tmp_path / "g.jsonl")))
    assert [problem.answer.replace(",", "") for problem in problems] == [row["answer"].replace(",", "") for row in rows]


@pytest.mark.skipif(not (SHARED / "math").is_dir(), reason="the shared problems are not here")
def test_real_math_solutions_hold_their_answers(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SHARED / "math" / "problems.jsonl").read_text().splitlines()]
    published = [{"problem": row["question"], "solution": row["solution"]} for row in rows]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in published))
    problems = load_problems(ProblemsConfig(path=str(tmp_path / "m.jsonl")))
    assert [problem.answer for problem in problems] == [row["answer"] for row in rows]
