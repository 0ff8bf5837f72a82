"""Test that rows of published policy benchmarks are read, prompted and graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from benchmark_rows import (
    MATHVERSE,
    MATHVERSE_VISION,
    MATHVISION,
    MATHVISION_FREE,
    MATHVISTA,
    MATHVISTA_CHOICE,
    MMK12,
    OLYMPIAD,
    WE_MATH,
    png,
)
from pyarrow import parquet

from mmprm.errors import DataError
from mmprm.evaluation.benchmarks import read_items
from mmprm.evaluation.entries import Item
from mmprm.grading.choice import inline_choices
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.problems import ProblemsConfig
from mmprm.types import Verdict


def read(folder: Path, benchmark: str, *rows: dict[str, Any], form: str = "json") -> tuple[list[Item], int]:
    file = folder / f"{benchmark}.{form}"
    if form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    elif form == "json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(benchmark, ProblemsConfig(path=str(file)))


def test_mmk12(tmp_path: Path) -> None:
    ((item,), _) = read(tmp_path, "mmk12", MMK12, form="parquet")
    assert item.problem.choices == ("30°", "40°", "50°", "60°")
    assert (item.problem.id, item.problem.answer, item.groups) == ("math-1", "B", {"subject": ("math",)})
    assert item.problem.question == MMK12["question"], "the question already contains the choices"
    assert item.problem.images[0].data == png()


def test_mathvista(tmp_path: Path) -> None:
    ((free, chosen), _) = read(tmp_path, "mathvista", MATHVISTA, MATHVISTA_CHOICE, form="parquet")
    lines = free.problem.question.splitlines()
    assert lines[1:] == ["(Unit: m)", "Give the answer as a number with 1 decimal place(s)."]
    assert (free.problem.answer, free.problem.choices) == ("1.2", ())
    assert chosen.problem.question.splitlines()[1:] == ["Choices:", "A. larger than", "B. equal to", "C. smaller than"]
    assert chosen.problem.answer == "B"
    assert chosen.groups == {
        "task": ("geometry problem solving",),
        "skill": ("algebraic reasoning", "geometry reasoning"),
    }
    assert free.problem.images[0].data == png()


def test_mathverse(tmp_path: Path) -> None:
    ((full, vision), _) = read(tmp_path, "mathverse", MATHVERSE, MATHVERSE_VISION, form="parquet")
    assert full.problem.choices == ("145°", "125°", "100°", "55°")
    assert vision.problem.question == "Answer the question in the image."
    assert (vision.problem.choices, vision.problem.answer) == ((), "B")
    assert full.family == vision.family == "1"
    assert (full.groups["subject"], full.groups["subfield"]) == (("Plane Geometry",), ("Angle",))
    assert (vision.part, vision.groups["version"]) == ("Vision Only", ("Vision Only",))


def test_mathvision(tmp_path: Path) -> None:
    ((chosen, free), _) = read(tmp_path, "mathvision", MATHVISION, MATHVISION_FREE, form="jsonl")
    assert chosen.problem.question.startswith("Which bridge must be closed? <image>\nChoices:\nA. A\n")
    assert chosen.problem.images[0].path == str(tmp_path / "images/4.jpg")
    assert (free.problem.question, free.problem.choices, free.problem.answer) == ("How many? <image>", (), "7")
    assert free.groups == {"subject": ("graph theory",), "level": ("2",)}


def test_olympiadbench(tmp_path: Path) -> None:
    others = [{**OLYMPIAD, "language": "Chinese"}, {**OLYMPIAD, "question_type": "Theorem proof"}]
    unit = {**OLYMPIAD, "id": 3, "question": "See <image_2> and <image_1>.", "unit": "cm", "final_answer": ["3"]}
    ((item, two), left_out) = read(tmp_path, "olympiadbench", OLYMPIAD, *others, unit, form="parquet")
    assert left_out == 2
    assert item.problem.question == "Let x be real.\nSolve $x^2 = 4$ as in <image>."
    assert (item.problem.answer, item.problem.id) == ("$2$, $-2$", "2231")
    assert item.groups == {"subfield": ("Algebra",)}
    assert "See picture 2 and picture 1.\n(Unit of the answer: cm)" in two.problem.question


def test_we_math(tmp_path: Path) -> None:
    whole = {**WE_MATH, "key": "2steps_multi"}
    ((part, multi), _) = read(tmp_path, "we-math", WE_MATH, whole)
    assert part.problem.choices == ("18", "15", "12", "10", "No correct answer")
    assert part.problem.question.endswith("( ) cm?\nChoices:\nA. 18\nB. 15\nC. 12\nD. 10\nE. No correct answer")
    area = ("Calculation of Plane Figures",)
    assert part.groups == {"steps": ("one",), "knowledge": area, "concept": ("Area of Circles",)}
    assert multi.groups == {"steps": ("two",)}
    assert part.family == multi.family
    assert (part.part, multi.part) == ("1", "multi")
    assert part.problem.id != multi.problem.id


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("Q\nA. (2, 3)\nB. (1, 2)", ("(2, 3)", "(1, 2)")),
        ("A. 18 cm; B. 15 cm; C. none", ("18 cm", "15 cm", "none")),
        ("Q\n(A) one\n(B) two", ()),
        ("Q\nA: x", ()),
        ("Q\nB. x\nA. y", ()),
        ("The point A. Then B moves.", ()),
        ("Points A, B, C. Find x:\nA. 1\nB. 2", ("1", "2")),
    ],
)
def test_inline_choices(text: str, choices: tuple[str, ...]) -> None:
    if text.startswith("Q\n(A)"):
        choices = ("one", "two")
    assert inline_choices(text) == choices


def test_the_answer_forms_are_graded(tmp_path: Path) -> None:
    """The grader accepts letters and texts of choices, numbers, and several answers."""
    found = [
        *read(tmp_path, "mmk12", MMK12, form="parquet")[0],
        *read(tmp_path, "mathvista", MATHVISTA, MATHVISTA_CHOICE, form="parquet")[0],
        *read(tmp_path, "mathverse", MATHVERSE, form="parquet")[0],
        *read(tmp_path, "mathvision", MATHVISION, MATHVISION_FREE)[0],
        *read(tmp_path, "olympiadbench", OLYMPIAD, form="parquet")[0],
        *read(tmp_path, "we-math", WE_MATH)[0],
    ]
    correct = ["40°", "1.2", "B", "125°", "B", "7", "-2, 2", "12"]
    incorrect = ["C", "1.3", "smaller than", "D", "C", "8", "2", "A"]
    with SymbolicGrader(GraderConfig()) as grader:
        for answers, verdict in ((correct, Verdict.CORRECT), (incorrect, Verdict.INCORRECT)):
            pairs = [(item.problem, f"<answer>{a}</answer>") for item, a in zip(found, answers, strict=True)]
            gradings = grader.grade_many(pairs)
            assert [grading.verdict for grading in gradings] == [verdict] * len(found)


def test_options_may_be_letters_themselves(tmp_path: Path) -> None:
    """In We-Math, "D. I" can be the correct one of four options."""
    row = {**WE_MATH, "question": "Which one?", "option": "A. F; B. D; C. B; D. I", "answer": "D"}
    (item,) = read(tmp_path, "we-math", row)[0]
    with SymbolicGrader(GraderConfig()) as grader:
        answers = ("D", "D. I", "I", "B. D", "B", "C. B")
        gradings = grader.grade_many([(item.problem, f"<answer>{answer}</answer>") for answer in answers])
    assert [grading.verdict is Verdict.CORRECT for grading in gradings] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("choices", "gold"), [(["D", "F", "G", "H"], "A"), (["larger than", "equal to"], "B")])
def test_mathvista_gives_the_correct_option_by_its_text(tmp_path: Path, choices: list[str], gold: str) -> None:
    row = {**MATHVISTA_CHOICE, "choices": choices, "answer": choices[ord(gold) - ord("A")]}
    (item,) = read(tmp_path, "mathvista", row, form="parquet")[0]
    with SymbolicGrader(GraderConfig()) as grader:
        gradings = grader.grade_many([(item.problem, f"<answer>{letter}</answer>") for letter in "AB"])
    assert [grading.verdict is Verdict.CORRECT for grading in gradings] == [gold == "A", gold == "B"]


def test_rows_of_another_form_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"item 2: is not a row of mmk12: lacks 'subject'"):
        read(tmp_path, "mmk12", {**MMK12, "image": "a.png"}, {"id": 2, "question": "Q", "answer": "A"})
    with pytest.raises(DataError, match="empty question or answer"):
        read(tmp_path, "mathvision", {**MATHVISION, "answer": ""})
    with pytest.raises(DataError, match="used before"):
        read(tmp_path, "mathvision", MATHVISION, MATHVISION)
