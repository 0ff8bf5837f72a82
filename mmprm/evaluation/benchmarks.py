"""Read policy benchmarks in their published formats, which use different columns:

    mmk12          id, question, image, answer, subject; the question contains the choices
    mathvista      pid, question, decoded_image (or image), choices, unit, precision, answer, question_type,
                   answer_type, metadata.task
    mathverse      sample_index, problem_index, problem_version, question, image, answer, question_type,
                   metadata.subject
    mathvision     id, question, options, decoded_image (or image), answer, subject
    olympiadbench  id, context, question, final_answer, image_1…image_9, unit, language, question_type, subfield
    we-math        ID, question, option, answer, image_path, key

A reader converts a row to an Entry, or to None if the row is not part of the benchmark. It raises KeyError, TypeError
or ValueError if the row has a different format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmprm.data.cells import Row
from mmprm.data.choices import with_choices
from mmprm.data.marks import place_marks
from mmprm.errors import DataError
from mmprm.grading.choice import inline_choices
from mmprm.problems import ProblemsConfig, image_folder, listed, read_image, read_rows
from mmprm.types import Problem

ONE_IMAGE = "Answer the question in the image."
"""Question text for MathVerse's vision-only version, whose rows contain no question text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Holds one benchmark row; `images` are in the row's original format.

    Entries with the same `family` are versions or parts of one problem, and `part` says which. By default, each entry
    is a separate family.
    """

    id: str
    question: str
    answer: str
    images: Sequence[Any] = ()
    choices: Sequence[str] = ()
    subject: str = ""
    family: str | None = None
    part: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """Holds a benchmark question as a problem, with the subject, family and part of its `Entry`."""

    problem: Problem
    subject: str
    family: str
    part: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Describes a benchmark: its reader, and the split to load from a hub data set or a folder."""

    split: str
    read: Callable[[Row], Entry | None]


def read_items(benchmark: str, config: ProblemsConfig) -> tuple[list[Item], int]:
    """Read the questions in file order, and count the rows that are not part of the benchmark."""
    root = image_folder(config)
    items: list[Item] = []
    left_out, seen = 0, dict[str, str]()
    for location, row in read_rows(config):
        try:
            entry = BENCHMARKS[benchmark].read(row)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{location}: is not a row of {benchmark}: {reason}; it has {', '.join(row)}; check the benchmark's "
                "name"
            ) from error
        if entry is None:
            left_out += 1
            continue
        if not entry.question.strip() or not entry.answer.strip():
            raise DataError(
                f"{location}: has an empty question or answer, so it cannot be graded; use a split with published "
                "answers"
            )
        if entry.id in seen:
            raise DataError(f"{location}: id {entry.id!r} was used before, at {seen[entry.id]}; make the ids unique")
        seen[entry.id] = location
        images = tuple(read_image(value, root, location) for value in entry.images)
        # "drop": questions whose numbers of marks and images differ are asked as published, with the images first.
        (question,) = place_marks([entry.question], len(images), location, ["question"], "drop")
        problem = Problem(entry.id, question, entry.answer, images, tuple(entry.choices))
        # Versions of one problem share a family, so that the bootstrap resamples them together.
        items.append(Item(problem, entry.subject, entry.family or entry.id, entry.part))
    if not items:
        raise DataError(f"{config.path}: contains no question of {benchmark}; check the path and the split")
    return items, left_out


def _mmk12(row: Row) -> Entry:
    question = row["question"]
    return Entry(
        str(row["id"]), question, row["answer"], listed(row.get("image")), inline_choices(question), row["subject"]
    )


HINTS = {
    "integer": "Give the answer as an integer.",
    "float": "Give the answer as a number with {decimals} decimal place(s).",
    "list": "Give the answer as a list, such as [1, 2, 3].",
}
"""MathVista's instructions on how to format a free-form answer, by answer_type."""


def _mathvista(row: Row) -> Entry:
    choices = list(row["choices"] or ())
    lines = [row["question"]]
    if row.get("unit"):
        lines.append(f"(Unit: {row['unit']})")
    if row["question_type"] == "free_form" and row["answer_type"] in HINTS:
        lines.append(HINTS[row["answer_type"]].format(decimals=int(row["precision"] or 0)))
    question = with_choices("\n".join(lines), choices)
    images = listed(row.get("decoded_image") or row["image"])
    answer = str(row["answer"])
    if answer in choices:  # an option's text may be a letter other than its own
        answer = chr(ord("A") + choices.index(answer))
    return Entry(str(row["pid"]), question, answer, images, choices, row["metadata"]["task"])


def _mathverse(row: Row) -> Entry:
    question = row["question"].strip() or ONE_IMAGE
    return Entry(
        id=str(row["sample_index"]),
        question=question,
        answer=str(row["answer"]),
        images=listed(row["image"]),
        choices=inline_choices(question) if row["question_type"] == "multi-choice" else (),
        subject=row["metadata"]["subject"],
        family=str(row["problem_index"]),
        part=row.get("problem_version", ""),
    )


def _mathvision(row: Row) -> Entry:
    choices = list(row["options"])
    images = listed(row.get("decoded_image") or row["image"])
    question = with_choices(row["question"], choices)
    return Entry(str(row["id"]), question, str(row["answer"]), images, choices, row["subject"])


def _olympiadbench(row: Row) -> Entry | None:
    """Read an English open-ended problem of OlympiadBench. Multiple answers are joined into one text, graded as a
    list."""
    if row["language"] != "English" or row["question_type"] != "Open-ended":
        return None
    lines = [row.get("context"), row["question"], f"(Unit of the answer: {row['unit']})" if row.get("unit") else None]
    images = [row[f"image_{n}"] for n in range(1, 10) if row.get(f"image_{n}")] or listed(row.get("image"))
    question, answer = "\n".join(line for line in lines if line), ", ".join(row["final_answer"])
    return Entry(str(row["id"]), question, answer, images, subject=row["subfield"])


STEPS = {"2steps": "two steps", "3steps": "three steps"}


def _we_math(row: Row) -> Entry:
    """Read a composite problem of We-Math or one of its parts.

    `key` is 2steps_1, 2steps_2, 2steps_multi (the whole problem), 3steps_1, …
    """
    steps, _, part = row["key"].partition("_")
    choices = inline_choices(row["option"])
    question = with_choices(row["question"], choices) if choices else f"{row['question']}\n{row['option']}"
    subject = STEPS[steps] if part == "multi" else "one step"
    id_, family = f"{row['ID']}/{row['key']}", f"{row['ID']}/{steps}"
    return Entry(id_, question, row["answer"], listed(row["image_path"]), choices, subject, family, part)


BENCHMARKS = {
    "mmk12": Benchmark("test", _mmk12),
    "mathvista": Benchmark("testmini", _mathvista),
    "mathverse": Benchmark("testmini", _mathverse),
    "mathvision": Benchmark("test", _mathvision),
    "olympiadbench": Benchmark("train", _olympiadbench),
    "we-math": Benchmark("testmini", _we_math),
}
