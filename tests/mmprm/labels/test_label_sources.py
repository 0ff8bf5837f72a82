"""Test each published format of step labels: which steps are read, and which label each step gets."""

from __future__ import annotations

from typing import Any

import pytest

from mmprm.errors import DataError
from mmprm.labels.sources import DroppedRecordError, SourceOptions, SourceSolution, label_counts, read_source
from mmprm.types import Counts

YES, NO = Counts(1, 0), Counts(0, 1)


def read(name: str, record: dict[str, Any], **options: Any) -> list[SourceSolution]:
    return list(read_source(name, record, SourceOptions(**options)))


def only(name: str, record: dict[str, Any], **options: Any) -> SourceSolution:
    (solution,) = read(name, record, **options)
    return solution


@pytest.mark.parametrize(
    ("label", "rollouts", "expected"),
    [
        (True, None, YES),
        ("-", None, NO),
        (" + ", None, YES),
        (1, None, YES),
        (0.25, None, Counts(0, 1, estimate=0.25)),
        (0.25, 16, Counts(4, 12)),
        (0.3, 16, Counts(5, 11, estimate=0.3)),
        ({"correct": 3, "incorrect": 13}, None, Counts(3, 13)),
        ({"correct": 3, "total": 16}, None, Counts(3, 13)),
        ({"correct": 3, "incorrect": 12, "unknown": 1}, None, Counts(3, 12, 1)),
        ({"correct": 0, "total": 0}, None, None),
        (None, 16, None),
    ],
)
def test_a_label_becomes_counts(label: Any, rollouts: int | None, expected: Counts | None) -> None:
    assert label_counts(label, rollouts) == expected


@pytest.mark.parametrize(
    "label", [1.5, -0.1, "maybe", [3, 16], {"correct": -1, "incorrect": 2}, {"correct": 9, "total": 8}]
)
def test_other_labels_are_refused(label: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        label_counts(label, None)


def completion(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": None}


def prm800k(*steps: dict[str, Any], reason: str = "solution", **fields: Any) -> dict[str, Any]:
    question = {"problem": "1+1+1?", "ground_truth_answer": "3"}
    return {"question": question, "label": {"steps": list(steps), "finish_reason": reason}, **fields}


def step(*completions: dict[str, Any], chosen: int | None = 0, human: Any = None) -> dict[str, Any]:
    return {"completions": list(completions), "chosen_completion": chosen, "human_completion": human}


def test_prm800k_phase_2_ends_before_the_first_error() -> None:
    record = prm800k(
        step(completion("1+1=2", 1)),
        step(completion("2+1=4", -1), completion("2+1=3", 0), chosen=None),
        reason="found_error",
    )
    main, error, alternative = read("prm800k", record)
    assert (main.steps, main.labels, main.complete, main.answer) == (["1+1=2"], [YES], False, "3")
    assert (error.steps, error.labels) == (["1+1=2", "2+1=4"], [None, NO])
    assert (alternative.steps, alternative.labels) == (["1+1=2", "2+1=3"], [None, YES])


def test_prm800k_solution_without_alternatives_keeps_its_error() -> None:
    record = prm800k(step(completion("1+1=2", 1)), step(completion("2+1=4", -1), chosen=None), reason="found_error")
    for alternatives in (True, False):
        solution = only("prm800k", record, alternatives=alternatives)
        assert (solution.steps, solution.labels, solution.complete) == (["1+1=2", "2+1=4"], [YES, NO], False)


def test_prm800k_phase_1_continues_with_the_labelers_own_step() -> None:
    human = {"text": "2+1=3", "rating": None, "source": "human"}
    record = prm800k(step(completion("2+1=4", -1), chosen=None, human=human), step(completion("# Answer\n\n3", 1)))
    main, error = read("prm800k", record)
    assert (main.steps, main.labels, main.complete) == (["2+1=3", "# Answer\n\n3"], [YES, YES], True)
    assert (error.steps, error.labels) == (["2+1=4"], [NO])
    assert len(read("prm800k", record, alternatives=False)) == 1


@pytest.mark.parametrize(("neutral", "expected"), [("correct", YES), ("incorrect", NO), ("none", None)])
def test_neutral_ratings_follow_the_configuration(neutral: str, expected: Counts | None) -> None:
    assert only("prm800k", prm800k(step(completion("Let us see.", 0))), neutral=neutral).labels == [expected]


@pytest.mark.parametrize("field", ["is_quality_control_question", "is_initial_screening_question"])
def test_prm800k_control_questions_are_dropped(field: str) -> None:
    record = prm800k(step(completion("a", 1)), **{field: True})
    with pytest.raises(DroppedRecordError, match="quality control"):
        read("prm800k", record)
    assert only("prm800k", record, quality_control=True).steps == ["a"]


def test_prm800k_broken_problems_are_dropped() -> None:
    with pytest.raises(DroppedRecordError, match="broken"):
        read("prm800k", prm800k(step(completion("a", 1)), reason="bad_problem"))


def test_math_shepherd() -> None:
    record = {
        "input": "How many? Step 1: 1+1=2. ки\nStep 2: The answer is: 3 ки",
        "label": "How many? Step 1: 1+1=2. +\nStep 2: The answer is: 3 -",
        "task": "GSM8K",
    }
    solution = only("math-shepherd", record)
    assert (solution.question, solution.steps) == ("How many?", ("1+1=2.", "The answer is: 3"))
    assert (solution.labels, solution.complete) == ([YES, NO], True)


@pytest.mark.parametrize("labels", ["label", "value"])
def test_openrlhf_names_its_labels_label_or_value(labels: str) -> None:
    record = {"input": "How many? Step 1: One. ки\nStep 2: Two. ки", labels: ["+", "-"]}
    assert only("openrlhf", record).labels == [YES, NO]


def visualprm(sign: str) -> dict[str, Any]:
    opening = "### Question:\nq\n\n### Solution Process:\na"
    return {"conversations": [{"from": "human", "value": opening}, {"from": "gpt", "value": sign}]}


def sign_records(sign: str) -> list[tuple[str, dict[str, Any]]]:
    marked = "q Step 1: a ки"
    return [
        ("math-shepherd", {"input": marked, "label": f"q Step 1: a {sign}"}),
        ("openrlhf", {"input": marked, "label": [sign]}),
        ("visualprm", visualprm(sign)),
    ]


@pytest.mark.parametrize(("sign", "expected"), [("+", YES), ("-", NO), ("+\n", YES), ("- ", NO)])
def test_a_sign_may_be_followed_by_whitespace(sign: str, expected: Counts) -> None:
    assert [only(name, record).labels for name, record in sign_records(sign)] == [[expected]] * 3


@pytest.mark.parametrize("sign", ["Yes", "", "+-?"])
def test_a_text_that_is_no_sign_is_refused_rather_than_incorrect(sign: str) -> None:
    for name, record in sign_records(sign):
        with pytest.raises(DataError, match=r"must be \+ or -"):
            read(name, record)


def test_visualprm_raw_has_counts_and_no_label_where_nothing_was_sampled() -> None:
    steps = [
        {"step": "a", "score": 0.125, "num_mc_correct": 2, "num_mc_total": 16},
        {"step": "b", "score": 0.0, "num_mc_correct": 0, "num_mc_total": 16},
        {"step": "c", "score": 0.0, "num_mc_correct": 0, "num_mc_total": 0},
    ]
    record = {"image": "a.png", "question": "<image>\nHow many?", "answer": 52, "steps_with_score": steps}
    solution = only("visualprm-raw", record)
    assert solution.labels == [Counts(2, 14), Counts(0, 16), None]
    assert (solution.steps, solution.answer) == (["a", "b", "c"], "52")
    assert only("visualprm-raw", record | {"question_orig": "How many?"}).question == "How many?"


def test_visualprm_raw_without_counts_uses_its_number_of_rollouts() -> None:
    record = {"question": "q", "steps_with_score": [{"step": "a", "score": 0.25}], "num_mc_sequences": 16}
    assert only("visualprm-raw", record).labels == [Counts(4, 12)]


def test_processbench_has_no_label_after_the_first_error() -> None:
    record = {"problem": "q", "steps": ["a", "b", "c"], "final_answer_correct": False, "label": 1}
    assert only("processbench", record).labels == [YES, NO, None]
    assert only("processbench", record | {"label": -1}).labels == [YES, YES, YES]


def test_visualprocessbench_reads_its_ratings() -> None:
    response = {"steps": ["a", "b", "c"], "process_correctness": [1, 0, -1]}
    record = {"question": "q", "answer": "B", "response": response}
    assert only("visualprocessbench", record, neutral="none").labels == [YES, None, NO]


def test_dualmath_keeps_the_answer_with_the_last_step() -> None:
    record = {
        "image_url": "a.png",
        "instruction": "Check each step.\nQuestion: How many?",
        "output": "Step 1: One. <pos>\nStep 2: Two. <neg>\n†Answer: 2",
    }
    solution = only("dualmath", record)
    assert solution.question == "How many?"
    assert solution.steps == ["Step 1: One.", "Step 2: Two. \n†Answer: 2"]
    assert solution.labels == [YES, NO]


def test_genprm_reads_the_verdict_of_each_critique() -> None:
    def critique(verdict: str) -> str:
        return f"<analyze>\nIt is \\boxed{{2}}.\n</analyze>\n<output>\n**Judgement**: $\\boxed{{{verdict}}}$\n</output>"

    turns = [
        ("system", "You are a math teacher."),
        ("user", "Question: How\n\nmany?\n\nOne."),
        ("assistant", critique("Yes")),
        ("user", "Two."),
        ("assistant", critique("No")),
    ]
    solution = only("genprm", {"conversations": [{"role": role, "content": text} for role, text in turns]})
    assert (solution.question, solution.steps, solution.labels) == ("How\n\nmany?", ["One.", "Two."], [YES, NO])


@pytest.mark.parametrize(
    "critique",
    ["<analyze>It is \\boxed{Yes}", "<output>\\boxed{Yes}", "<output>Maybe.</output> Not \\boxed{Yes}, see </output>."],
    ids=["no output", "cut off", "box outside of the output"],
)
def test_a_critique_without_a_verdict_gives_no_label(critique: str) -> None:
    turns = [("user", "q\n\nOne."), ("assistant", critique)]
    solution = only("genprm", {"conversations": [{"role": role, "content": text} for role, text in turns]})
    assert solution.labels == [None]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "steps": ["a"]}, "has no 'labels'; it has the fields question, steps"),
        ({"question": "q", "steps": ["a"], "labels": [True, False]}, "1 steps but 2 labels"),
        ({"question": "q", "steps": ["a", " "], "labels": [True, True]}, "none of them empty"),
        ({"question": 7, "steps": ["a"], "labels": [True]}, "question must be text, got 7"),
        ({"question": "q", "steps": ["a"], "labels": ["?"]}, r"label '\?' must be"),
    ],
)
def test_a_broken_record_is_explained(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read("steps", record)
