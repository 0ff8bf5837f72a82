"""Test more published benchmarks: each row is read, prompted, and graded by the published rule."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, get_args

import published_rows as rows
import pytest
from benchmark_rows import MATHVERSE, MATHVERSE_VISION, OLYMPIAD

from mmprm.errors import DataError
from mmprm.evaluation.benchmarks import BENCHMARKS, read_items, with_distinct_ids
from mmprm.evaluation.entries import Item
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.evaluation.rules import grade_by_rule
from mmprm.grading.symbolic import SymbolicGrader
from mmprm.problems import ProblemsConfig


def read(folder: Path, benchmark: str, *found: dict[str, Any]) -> list[Item]:
    import pyarrow
    from pyarrow import parquet

    file = folder / f"{benchmark}.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(list(found)), file)
    return read_items(benchmark, ProblemsConfig(path=str(file)))[0]


def verdicts(item: Item, *answers: str) -> str:
    """Grade answers by the item's rule: one letter per verdict."""
    with SymbolicGrader() as grader:
        graded = [
            asyncio.run(grade_by_rule(item.problem, item.also, item.rule, f"<answer>{answer}</answer>", grader))
            for answer in answers
        ]
    return "".join(grading.verdict.name[0] for grading in graded)


def test_every_benchmark_can_be_configured() -> None:
    assert {"problems", *BENCHMARKS} == set(get_args(PolicyEvalConfig.model_fields["benchmark"].annotation))


def test_mathverse_accepts_the_text_of_an_option_that_only_the_image_shows(tmp_path: Path) -> None:
    """The published judge reads question_for_eval, which lists the options; the prompt must not."""
    row = {**MATHVERSE_VISION, "question_for_eval": MATHVERSE["question"]}
    (item,) = read(tmp_path, "mathverse", row)
    assert (item.problem.question, item.problem.choices) == ("Answer the question in the image.", ())
    assert verdicts(item, "B", "125°", "125", "(B) 125°", "A", "C. 100°") == "CCCCII"
    assert "C" not in verdicts(item, "145°", "55", "(A) 145°")
    assert read(tmp_path, "mathverse", MATHVERSE)[0].also == ()


@pytest.mark.parametrize(("error", "verdict"), [("0.1,0.2", "C"), ("0.2", "C"), (",0.2", "I"), ("0.05,0.05", "I")])
def test_olympiadbench_has_an_error_per_answer(tmp_path: Path, error: str, verdict: str) -> None:
    row = {**OLYMPIAD, "final_answer": ["$3.1$,$2.5$"], "error": error}
    (item,) = read(tmp_path, "olympiadbench", row)
    assert verdicts(item, "3.2, 2.6") == verdict
    assert verdicts(item, "2.5 and 3.1", "3.1") == "CI"


def test_k12(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "k12", rows.K12)
    assert (item.problem.id, item.problem.images[0].path) == ("k-1", str(tmp_path / "images/k-1.png"))
    assert verdicts(item, "$f(x)=2\\sin x$", "\\sin x") == "CI"


def test_mm_math(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "mm-math", rows.MM_MATH)
    assert item.problem.answer == "3.46", "the last box of the solution"
    assert item.groups == {
        "difficulty": ("hard",),
        "year": ("nine",),
        "knowledge": ("Properties of Figures", "Triangles"),
    }
    assert verdicts(item, "3.4701", "3.4702", "2\\sqrt{3}", "346", "0.0346", "345.98") == "CICCCI"
    (table,) = read(tmp_path, "mm-math", rows.MM_MATH_TABLE)
    assert (table.problem.id, table.groups["difficulty"]) == ("7", ("easy",))
    assert verdicts(table, "45", "45°", "44") == "CCI"
    with pytest.raises(DataError, match=r"its solution has no \\boxed answer"):
        read(tmp_path, "mm-math", {**rows.MM_MATH, "solution": "So it is 3."})


def test_dynamath_numbers_the_variants_of_a_question(tmp_path: Path) -> None:
    text = {**rows.DYNAMATH, "ground_truth": "Sep", "answer_type": "text"}
    letter = {**rows.DYNAMATH, "id": "2", "ground_truth": "B", "answer_type": "multiple choice"}
    first, second, other = with_distinct_ids(read(tmp_path, "dynamath", rows.DYNAMATH, text, letter))
    assert [item.problem.id for item in (first, second, other)] == ["1", "1/2", "2"]
    assert first.family == second.family == "1"
    assert first.problem.question.endswith("Give the answer as a number with three decimal places.")
    assert verdicts(first, "2.0945", "2\\pi/3", "2.0951", "2.1") == "CCII"
    assert verdicts(second, "It is Sep.", "September", "not Sep", "Oct") == "CCII"
    assert verdicts(other, "B", "(B) 3", "C") == "CCI"


def test_math_500_and_aime(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "math-500", rows.MATH_500)
    assert item.groups == {"subject": ("Precalculus",), "level": ("2",)}
    assert verdicts(item, "(3, \\pi/2)", "(3, \\pi)") == "CI"
    (item,) = read(tmp_path, "aime", rows.AIME)
    assert (item.problem.id, item.problem.answer, item.problem.images) == ("2024-II-4", "33", ())
    assert verdicts(item, "33", "033", "34", "m+n=33", "m + n = 20 + 14 = 34") == "CCICI"
    (degrees,) = read(tmp_path, "aime", {"question": "Find it in degrees.", "answer": "336^\\circ"})
    assert degrees.problem.answer == "336", "opencompass/AIME2025"
    (copy,) = read(tmp_path, "aime", {"problem": "Find $m+n$.", "answer": 33, "id": 60, "year": "2024"})
    assert (copy.problem.id, copy.groups) == ("60", {"year": ("2024",)})


def test_gpqa_shuffles_the_options_by_content(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "gpqa", rows.GPQA)
    letter = item.problem.answer
    assert item.problem.choices["ABCD".index(letter)] == "the photon"
    assert read(tmp_path, "gpqa", rows.GPQA)[0].problem.choices == item.problem.choices
    letters = {read(tmp_path, "gpqa", {**rows.GPQA, "Question": f"Q{n}"})[0].problem.answer for n in range(20)}
    assert letters == set("ABCD")
    assert verdicts(item, letter, "the photon", "the gluon") == "CCI"
    assert item.groups == {"domain": ("Physics",), "subdomain": ("Particle physics",)}


def test_cv_bench_and_blink_ask_the_published_prompt(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "cv-bench", rows.CV_BENCH)
    assert (item.problem.question, item.problem.answer) == (rows.CV_BENCH["prompt"], "C")
    assert item.groups == {"task": ("Count",), "type": ("2D",), "source": ("ADE20K",)}
    assert verdicts(item, "(C)", "C", "1", "(C) 1", "2", "(A)", "3") == "CCCCIII"
    (item,) = read(tmp_path, "blink", rows.BLINK)
    assert (item.problem.question, len(item.problem.images)) == (rows.BLINK["prompt"], 2)
    assert verdicts(item, "(B)", "3", "(A)") == "CCI"
    with pytest.raises(DataError, match="its answer 'hidden' is not an option's letter"):
        read(tmp_path, "blink", {**rows.BLINK, "answer": "hidden"})


def test_mmstar_finds_the_options_in_the_question(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "mmstar", rows.MMSTAR)
    assert item.problem.choices == ("The suitcase, closed.", "A cat.", "Nothing.", "A cup.")
    assert item.problem.question == rows.MMSTAR["question"], "the question already contains the options"
    assert verdicts(item, "A", "The suitcase, closed", "B", "a cat") == "CCII"


def test_chartqa_accepts_five_percent(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "chartqa", rows.CHARTQA)
    assert verdicts(item, "14", "14.7", "13.3", "14.71", "13.29", "15") == "CCCIII"
    assert item.groups == {"split": ("human",)}
    (copy,) = read(tmp_path, "chartqa", rows.CHARTQA_COPY)
    assert (copy.problem.answer, copy.groups) == ("2012", {"split": ("augmented",)})
    (text,) = read(tmp_path, "chartqa", {**rows.CHARTQA, "label": ["Dark blue"]})
    assert verdicts(text, "dark blue", "light blue") == "CU", "text that differs is left to the judge"


def test_yes_no_benchmarks(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "vsr", rows.VSR)
    assert item.problem.question.endswith("The bear is in front of the person.\nAnswer yes or no.")
    assert verdicts(item, "Yes", "yes, it is", "No", "yes or no", "maybe", "true") == "CCIIII"
    assert verdicts(item, "Yes, there is no doubt.", "No: yes would be wrong", "no-one sits there, yes", "y") == "CIIC"
    (item,) = read(tmp_path, "vsr", {**rows.VSR, "label": 0})
    assert verdicts(item, "No.", "Yes") == "CI"
    (item,) = read(tmp_path, "hallusionbench", rows.HALLUSIONBENCH)
    assert (item.problem.id, item.family, item.part) == ("VS/chart/0/1/2", "VS/chart/0", "1/2")
    assert (item.problem.answer, item.problem.images[0].path) == ("No", None)
    one, two = with_distinct_ids(
        read(tmp_path, "mme", rows.MME, {**rows.MME, "question": "Is there a cat?", "answer": "No"})
    )
    assert [one.problem.id, two.problem.id] == ["existence/0020.png", "existence/0020.png/2"]
    assert (verdicts(one, "Yes", "No"), verdicts(two, "Yes", "No")) == ("CI", "IC")


def test_mmmu(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "mmmu", rows.MMMU)
    assert item.problem.question == "Which work is like <image>?\nChoices:\nA. <image>\nB. <image>"
    assert (len(item.problem.images), item.problem.answer) == (3, "B")
    assert item.groups == {"subject": ("Art_Theory",), "domain": ("Art and Design",)}
    assert verdicts(item, "B", "(B)", "A") == "CCI"
    (item,) = read(tmp_path, "mmmu", rows.MMMU_OPEN)
    assert (item.problem.answer, item.also) == ("8.35", ("eight volts",))
    assert verdicts(item, "8.354", "8.35 V", "about eight volts", "8.36", "9") == "CCCII"


@pytest.mark.parametrize(
    ("benchmark", "row"),
    [
        ("mmmu", {**rows.MMMU, "answer": "?"}),
        ("mmmu", {**rows.MMMU_OPEN, "answer": "?"}),
        ("chartqa", {**rows.CHARTQA, "label": None}),
        ("dynamath", {**rows.DYNAMATH, "ground_truth": None}),
        ("k12", {**rows.K12, "answer": None}),
        ("math-500", {**rows.MATH_500, "answer": None}),
    ],
)
def test_hidden_answers_are_refused(tmp_path: Path, benchmark: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="has an empty question or answer, so it cannot be graded"):
        read(tmp_path, benchmark, row)


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        ("hallusionbench", {**rows.HALLUSIONBENCH, "gt_answer": "2"}, "its label '2' is not 0 or 1"),
        ("vsr", {**rows.VSR, "label": -1}, "its label -1 is not 0 or 1"),
        ("aime", {**rows.AIME, "Answer": "1000"}, "its answer '1000' is not an integer from 0 to 999"),
        ("mme", {**rows.MME, "answer": None}, "its answer None is not Yes or No"),
        ("gpqa", {**rows.GPQA, "Incorrect Answer 3": None}, "is not a row of gpqa"),
        ("k12", {**rows.K12, "question": 5}, "is not a row of k12"),
    ],
)
def test_rows_with_unusable_values_are_refused(
    tmp_path: Path, benchmark: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, benchmark, row)


def test_rows_of_other_benchmarks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"question": "Q"}) + "\n")
    for benchmark in BENCHMARKS:
        with pytest.raises(DataError, match=f"is not a row of {benchmark}: lacks '"):
            read_items(benchmark, ProblemsConfig(path=str(tmp_path / "x.jsonl")))
