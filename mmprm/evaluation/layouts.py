"""Benchmarks for policies as they are published: which columns hold question, pictures, choices, answer and subject.

    mmk12          id, question, image, answer, subject; choices stand in the question
    mathvista      pid, question, decoded_image (or image), choices, unit, precision, answer, question_type,
                   answer_type, metadata.task
    mathverse      sample_index, problem_index, problem_version, question, image, answer, question_type,
                   metadata.subject
    mathvision     id, question, options, decoded_image (or image), answer, subject
    olympiadbench  id, context, question, final_answer, image_1…image_9, unit, language, question_type, subfield
    we-math        ID, question, option, answer, image_path, key

A reader turns one row into an Entry, or None for one that is no part of the benchmark; KeyError, TypeError and
ValueError in it mean that the row has another form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmprm.data.choices import with_choices
from mmprm.data.marks import place_marks
from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, listed, pictures_root, read_picture, read_rows
from mmprm.types import Problem

Row = Mapping[str, Any]

ONE_PICTURE = "Answer the question in the picture."
"""MathVerse's vision-only version has no text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`pictures` as they stand in the row. Entries of one `family` are versions or parts of one problem, by default of
    the entry's own; `part` names which."""

    id: str
    question: str
    answer: str
    pictures: Sequence[Any] = ()
    choices: Sequence[str] = ()
    subject: str = ""
    family: str | None = None
    part: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """A question of a benchmark, ready to be asked."""

    problem: Problem
    subject: str
    family: str
    part: str


@dataclass(frozen=True, slots=True)
class Layout:
    """`split` is the one to take from a hub data set or a folder."""

    split: str
    read: Callable[[Row], Entry | None]


def read_items(layout: str, config: ProblemsConfig) -> tuple[list[Item], int]:
    """The questions in file order, and the number of rows that are no part of the benchmark."""
    root = pictures_root(config)
    items: list[Item] = []
    left_out, seen = 0, dict[str, str]()
    for place, row in read_rows(config):
        try:
            entry = LAYOUTS[layout].read(row)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{place}: is no row of {layout}: {reason}; it has {', '.join(row)}") from error
        if entry is None:
            left_out += 1
            continue
        if not entry.question.strip() or not entry.answer.strip():
            raise DataError(
                f"{place}: has no question or no answer; a part whose answers are withheld cannot be graded"
            )
        if entry.id in seen:
            raise DataError(f"{place}: id {entry.id!r} was used before, at {seen[entry.id]}")
        seen[entry.id] = place
        pictures = tuple(read_picture(value, root, place) for value in entry.pictures)
        (question,) = place_marks([entry.question], len(pictures), place, ["question"], "drop")
        problem = Problem(entry.id, question, entry.answer, pictures, tuple(entry.choices))
        items.append(Item(problem, entry.subject, entry.family or entry.id, entry.part))
    if not items:
        raise DataError(f"{config.path}: holds no question of {layout}")
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
"""What MathVista tells the model about the form of a free answer, by answer_type."""


def _mathvista(row: Row) -> Entry:
    choices = list(row["choices"] or ())
    lines = [row["question"]]
    if row.get("unit"):
        lines.append(f"(Unit: {row['unit']})")
    if row["question_type"] == "free_form" and row["answer_type"] in HINTS:
        lines.append(HINTS[row["answer_type"]].format(decimals=int(row["precision"] or 0)))
    question = with_choices("\n".join(lines), choices)
    pictures = listed(row.get("decoded_image") or row["image"])
    answer = str(row["answer"])
    if answer in choices:  # an option may be a letter, and not its own
        answer = chr(ord("A") + choices.index(answer))
    return Entry(str(row["pid"]), question, answer, pictures, choices, row["metadata"]["task"])


def _mathverse(row: Row) -> Entry:
    question = row["question"].strip() or ONE_PICTURE
    return Entry(
        id=str(row["sample_index"]),
        question=question,
        answer=str(row["answer"]),
        pictures=listed(row["image"]),
        choices=inline_choices(question) if row["question_type"] == "multi-choice" else (),
        subject=row["metadata"]["subject"],
        family=str(row["problem_index"]),
        part=row.get("problem_version", ""),
    )


def _mathvision(row: Row) -> Entry:
    choices = list(row["options"])
    pictures = listed(row.get("decoded_image") or row["image"])
    question = with_choices(row["question"], choices)
    return Entry(str(row["id"]), question, str(row["answer"]), pictures, choices, row["subject"])


def _olympiadbench(row: Row) -> Entry | None:
    """English, open-ended. Several answers are one text, as the grader reads lists."""
    if row["language"] != "English" or row["question_type"] != "Open-ended":
        return None
    lines = [row.get("context"), row["question"], f"(Unit of the answer: {row['unit']})" if row.get("unit") else None]
    pictures = [row[f"image_{n}"] for n in range(1, 10) if row.get(f"image_{n}")] or listed(row.get("image"))
    question, answer = "\n".join(line for line in lines if line), ", ".join(row["final_answer"])
    return Entry(str(row["id"]), question, answer, pictures, subject=row["subfield"])


STEPS = {"2steps": "two steps", "3steps": "three steps"}


def _we_math(row: Row) -> Entry:
    """`key` reads 2steps_1, 2steps_2, 2steps_multi, 3steps_1, …: the parts of a composite problem, and the whole."""
    steps, _, part = row["key"].partition("_")
    choices = inline_choices(row["option"])
    question = with_choices(row["question"], choices) if choices else f"{row['question']}\n{row['option']}"
    subject = STEPS[steps] if part == "multi" else "one step"
    id_, family = f"{row['ID']}/{row['key']}", f"{row['ID']}/{steps}"
    return Entry(id_, question, row["answer"], listed(row["image_path"]), choices, subject, family, part)


LAYOUTS = {
    "mmk12": Layout("test", _mmk12),
    "mathvista": Layout("testmini", _mathvista),
    "mathverse": Layout("testmini", _mathverse),
    "mathvision": Layout("test", _mathvision),
    "olympiadbench": Layout("train", _olympiadbench),
    "we-math": Layout("testmini", _we_math),
}

_CHOICE = re.compile(r"(?:^|[\n;,])\s*\(?([A-J])\s*[.:)、]\s*(.*?)(?=[\n;,]\s*\(?[A-J]\s*[.:)、]|\Z)", re.DOTALL)


def inline_choices(text: str) -> tuple[str, ...]:
    """Texts of the choices A, B, … that stand in a text, on lines of their own or behind semicolons, from the last A;
    () unless there are at least two, in order."""
    found = _CHOICE.findall(text)
    letters = "".join(letter for letter, _ in found)
    start = max(0, letters.rfind("A"))  # before it, points may have letters
    found, letters = found[start:], letters[start:]
    complete = len(found) > 1 and "ABCDEFGHIJ".startswith(letters)
    return tuple(choice.strip().rstrip(";") for _, choice in found) if complete else ()
