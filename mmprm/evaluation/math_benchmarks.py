"""Read the rows of mathematics and science benchmarks in their published formats, which use different columns:

    mmk12          id, question, image, answer, subject; the question contains the choices
    k12            id, question, answer, image_path (MM-Eureka, eval/k12/k12.json)
    mathvista      pid, question, decoded_image (or image), choices, unit, precision, answer, question_type,
                   answer_type, metadata.task, metadata.skills
    mathverse      sample_index, problem_index, problem_version, question, image, answer, question_type,
                   metadata.subject, metadata.subfield, and optionally question_for_eval
    mathvision     id, question, options, decoded_image (or image), answer, subject, level
    olympiadbench  id, context, question, final_answer, image_1…image_9, unit, error, language, question_type, subfield
    we-math        ID, question, option, answer, image_path, key, knowledge concept
    mm-math        question, file_name (or image), solution (or answer), year, difficult (or difficulty), knowledge
    dynamath       id, question, decoded_image (or image), ground_truth, answer_type, subject, knowledge_level
    math-500       unique_id, problem, answer, subject, level
    aime           problem, answer, and optionally id, year; names are read in any case
    gpqa           Record ID, Question, Correct Answer, Incorrect Answer 1…3, High-level domain, Subdomain

A reader converts a row to an Entry, or to None if the row is not part of the benchmark. It raises KeyError, TypeError
or ValueError if the row has a different format.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any

from mmprm.data.cells import Row
from mmprm.data.choices import LETTERS
from mmprm.evaluation.entries import Entry, published_answer
from mmprm.evaluation.rules import (
    AnswerRule,
    containing,
    each_within,
    first_of,
    in_order,
    last_side,
    rounded,
    truncated,
    within,
)
from mmprm.evaluation.we_math import concept_area
from mmprm.grading.choice import inline_choices
from mmprm.grading.extract import boxed
from mmprm.problems import listed

ONE_IMAGE = "Answer the question in the image."
"""Question text for MathVerse's vision-only version, whose rows contain no question text."""


def first_images(row: Row, *names: str) -> list[Any]:
    """Return the images in the first of the named columns that holds any."""
    return next((found for name in names if (found := listed(row.get(name)))), [])


def read_mmk12(row: Row) -> Entry:
    """Read a row of MMK12."""
    question = row["question"]
    images, choices = listed(row.get("image")), inline_choices(question)
    answer = published_answer(row["answer"])
    return Entry(str(row["id"]), question, answer, images, choices, {"subject": row["subject"]})


def read_k12(row: Row) -> Entry:
    """Read a row of K12, whose answers are values or formulas."""
    images = first_images(row, "image", "image_path")
    return Entry(str(row["id"]), row["question"], published_answer(row["answer"]), images)


HINTS = {
    "integer": "Give the answer as an integer.",
    "float": "Give the answer as a number with {decimals} decimal place(s).",
    "list": "Give the answer as a list, such as [1, 2, 3].",
}
"""MathVista's instructions on how to format a free-form answer, by answer_type."""


def read_mathvista(row: Row) -> Entry:
    """Read a row of MathVista. Source of the rule: its evaluation/calculate_score.py, normalize_extracted_answer."""
    choices, decimals = list(row["choices"] or ()), int(row["precision"] or 0)
    free = row["question_type"] == "free_form"
    lines = [row["question"]]
    if row.get("unit"):
        lines.append(f"(Unit: {row['unit']})")
    if free and row["answer_type"] in HINTS:
        lines.append(HINTS[row["answer_type"]].format(decimals=decimals))
    answer = published_answer(row["answer"])
    if answer in choices:  # an option's text may be a letter other than its own
        answer = chr(ord("A") + choices.index(answer))
    rules: dict[str, AnswerRule] = {"integer": truncated, "float": rounded(decimals), "list": in_order}
    return Entry(
        id=str(row["pid"]),
        question="\n".join(lines),
        answer=answer,
        images=first_images(row, "decoded_image", "image"),
        choices=choices,
        groups={"task": row["metadata"]["task"], "skill": row["metadata"].get("skills")},
        rule=rules.get(row["answer_type"]) if free else None,
    )


def read_mathverse(row: Row) -> Entry:
    """Read a row of MathVerse, which holds one version of a problem.

    Where only the image shows the options, the text of the correct one is a further gold answer.
    """
    question, version = row["question"].strip() or ONE_IMAGE, row.get("problem_version", "")
    about, answer = row["metadata"], published_answer(row["answer"])
    has_options = row["question_type"] == "multi-choice"
    choices = inline_choices(question) if has_options else ()
    hidden = inline_choices(row.get("question_for_eval") or "") if has_options and not choices else ()
    return Entry(
        id=str(row["sample_index"]),
        question=question,
        answer=answer,
        images=listed(row["image"]),
        choices=choices,
        also=[text for letter, text in zip(LETTERS, hidden, strict=False) if letter == answer.strip("()")],
        groups={"version": version, "subject": about["subject"], "subfield": about.get("subfield")},
        family=str(row["problem_index"]),
        part=version,
    )


def read_mathvision(row: Row) -> Entry:
    """Read a row of MathVision."""
    images = first_images(row, "decoded_image", "image")
    groups = {"subject": row["subject"], "level": row.get("level")}
    answer = published_answer(row["answer"])
    return Entry(str(row["id"]), row["question"], answer, images, list(row["options"]), groups)


def read_olympiadbench(row: Row) -> Entry | None:
    """Read an English open-ended problem of OlympiadBench. Multiple answers are joined into one text, graded as a
    list. Each answer may deviate by its `error`.

    Source of the rule: OlympiadBench, inference/judge.py.
    """
    if row["language"] != "English" or row["question_type"] != "Open-ended":
        return None
    lines = [row.get("context"), row["question"], f"(Unit of the answer: {row['unit']})" if row.get("unit") else None]
    images = [row[f"image_{n}"] for n in range(1, 10) if row.get(f"image_{n}")] or listed(row.get("image"))
    question, answer = "\n".join(line for line in lines if line), ", ".join(row["final_answer"])
    errors = [float(error or 0) for error in str(row["error"]).split(",")] if row.get("error") else []
    rule = first_of(each_within(errors), within(absolute=errors[0])) if errors else None
    return Entry(str(row["id"]), question, answer, images, groups={"subfield": row["subfield"]}, rule=rule)


_STEPS = {"2steps": "two", "3steps": "three"}


def read_we_math(row: Row) -> Entry:
    """Read a composite problem of We-Math or one of its parts.

    `key` is 2steps_1, 2steps_2, 2steps_multi (the whole problem), 3steps_1, …
    """
    steps, _, part = row["key"].partition("_")
    choices = inline_choices(row["option"])
    whole = part == "multi"
    concept = None if whole else str(row.get("knowledge concept") or "")
    return Entry(
        id=f"{row['ID']}/{row['key']}",
        question=row["question"] if choices else f"{row['question']}\n{row['option']}",
        answer=published_answer(row["answer"]),
        images=listed(row["image_path"]),
        choices=choices,
        groups={
            "steps": _STEPS[steps] if whole else "one",
            "knowledge": concept and concept_area(concept),
            "concept": concept,
        },
        family=f"{row['ID']}/{steps}",
        part=part,
    )


def read_mm_math(row: Row) -> Entry:
    r"""Read a row of MM-Math, whose answer is the last \boxed{} of its solution.

    Source of the rule: VLMEvalKit's mmmath.py, numerical_equal (1.01 · 10⁻², also as a percentage).
    """
    answer = str(row.get("answer") or "") or ", ".join(boxed(row["solution"])[-1:])
    if not answer:
        raise ValueError(r"its solution has no \boxed answer")
    images = first_images(row, "image", "file_name")
    knowledge = row.get("knowledge") or row.get("knowledge_l1")
    groups = {"difficulty": row.get("difficult") or row.get("difficulty"), "year": row.get("year")}
    digest = hashlib.sha256(f"{row['question']}\n{row.get('file_name')}".encode()).hexdigest()[:16]
    return Entry(
        id=str(row.get("index") or digest),
        question=row["question"],
        answer=answer,
        images=images,
        groups=groups | {"knowledge": knowledge},
        rule=within(absolute=0.0101, percent=True),
    )


def read_dynamath(row: Row) -> Entry:
    """Read one variant of a DynaMath question; all variants share the question's id.

    Source of the rule: DynaMath's evaluation/gpt4o/gpt_4o_json_eval.py (0.001 for numbers, containment for text).
    """
    kind = row["answer_type"]
    hint = "\nGive the answer as a number with three decimal places." if kind == "float" else ""
    return Entry(
        id=str(row["id"]),
        question=row["question"] + hint,
        answer=published_answer(row["ground_truth"]),
        images=first_images(row, "decoded_image", "image"),
        groups={"subject": row["subject"], "level": row["knowledge_level"]},
        rule={"float": within(absolute=0.001), "multiple choice": None}.get(kind, containing),
    )


def read_math_500(row: Row) -> Entry:
    """Read a row of MATH-500."""
    groups = {"subject": row["subject"], "level": row["level"]}
    return Entry(str(row["unique_id"]), row["problem"], published_answer(row["answer"]), groups=groups)


_AIME_ANSWER = re.compile(r"(\d{1,3})(?:\.0)?(?:\^\{?\\circ\}?|°)?")
"""Matches an AIME answer, with or without a degree sign, as in 336^\\circ of opencompass/AIME2025."""


def read_aime(row: Row) -> Entry:
    """Read a problem of AIME, whose answer is an integer from 0 to 999."""
    cells = {name.casefold(): value for name, value in row.items()}
    question, written = cells.get("problem") or cells["question"], str(cells["answer"]).strip()
    if (match := _AIME_ANSWER.fullmatch(written)) is None:
        raise ValueError(f"its answer {written!r} is not an integer from 0 to 999")
    digest = hashlib.sha256(question.encode()).hexdigest()[:16]
    id_ = cells.get("id")
    return Entry(
        id=str(digest if id_ is None else id_),
        question=question,
        answer=str(int(match[1])),
        groups={"year": cells.get("year")},
        rule=last_side,
    )


def read_gpqa(row: Row) -> Entry:
    """Read a row of GPQA. The options are shuffled with a seed derived from the question."""
    correct = row["Correct Answer"].strip()
    choices = [correct, *(row[f"Incorrect Answer {number}"].strip() for number in (1, 2, 3))]
    random.Random(row["Question"]).shuffle(choices)
    return Entry(
        id=str(row["Record ID"]),
        question=row["Question"].strip(),
        answer=chr(ord("A") + choices.index(correct)),
        choices=choices,
        groups={"domain": row["High-level domain"], "subdomain": row.get("Subdomain")},
    )
