"""Read solutions with known step correctness, from human judgments or other labels, using one reader per data set.

A reader converts a record to a Parsed. It raises KeyError, TypeError or ValueError if the record has a different
format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmprm.data.images import image_digest
from mmprm.data.marks import place_marks
from mmprm.data.record_images import record_images
from mmprm.errors import DataError
from mmprm.files import parse_json
from mmprm.labels.formats import LABEL_FORMATS, Record
from mmprm.metrics import NO_ERROR
from mmprm.types import Problem, Solution

MetricName = Literal["first_error_f1", "macro_f1"]


@dataclass(frozen=True, slots=True)
class LabeledSolution:
    """Holds a solution and whether each of its steps is correct (None if unknown or excluded).

    All solutions of a problem have the same `problem`, even from different authors. `source` is a part of the data set
    that is reported separately.
    """

    solution: Solution
    correct: tuple[bool | None, ...]
    problem: str
    source: str

    @property
    def first_error(self) -> int:
        """Return the index of the first incorrect step, or NO_ERROR."""
        return next((index for index, correct in enumerate(self.correct) if correct is False), NO_ERROR)


class Parsed:
    """Holds the contents of a record except for its images."""

    def __init__(
        self,
        question: str,
        steps: Sequence[str],
        correct: Sequence[bool | None],
        source: str | None = None,
    ) -> None:
        self.question = question
        self.steps = tuple(steps)
        self.correct = tuple(correct)
        self.source = source


@dataclass(frozen=True, slots=True)
class Options:
    """Holds the options that all readers of labeled data accept.

    `format` is the format of "steps" files (see labels.formats). Soft labels above `label_threshold` count as correct.
    """

    format: str = "prm800k"
    label_threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Describes a data set with step labels: its reader and its metric."""

    metric: MetricName
    read: Callable[[Record, Options], Parsed]


def read_processbench(record: Record, options: Options) -> Parsed:
    """Read a ProcessBench record: `label` is the index of the first incorrect step, or -1. Later steps are unknown."""
    steps, error = record["steps"], record["label"]
    if not isinstance(error, int) or not NO_ERROR <= error < len(steps):
        raise ValueError(f"label must be -1 or the index of one of the {len(steps)} steps, got {error!r}; correct it")
    if error == NO_ERROR:
        return Parsed(record["problem"], steps, [True] * len(steps))
    # The annotators stopped at the first error.
    later = len(steps) - error - 1
    return Parsed(record["problem"], steps, [True] * error + [False] + [None] * later)


def read_visualprocessbench(record: Record, options: Options) -> Parsed:
    """Read a VisualProcessBench record: 1 means correct, -1 incorrect, and 0 neither. Steps with 0 are excluded."""
    response = record["response"]
    response = parse_json(response, "response") if isinstance(response, str) else response
    correct = [{1: True, -1: False, 0: None}[value] for value in response["process_correctness"]]
    return Parsed(record["question"], response["steps"], correct, record.get("data_source"))


def read_steps(record: Record, options: Options) -> Parsed:
    """Read a record in one of the formats in labels.formats."""
    question, steps, labels = LABEL_FORMATS[options.format].read(record)
    correct = [label if isinstance(label, bool | None) else label > options.label_threshold for label in labels]
    return Parsed(question, steps, correct)


DATASETS: dict[str, Dataset] = {
    "processbench": Dataset("first_error_f1", read_processbench),
    "visualprocessbench": Dataset("macro_f1", read_visualprocessbench),
    "steps": Dataset("macro_f1", read_steps),
}


def read_labeled(
    name: str, records: Iterable[tuple[str, Record]], root: Path, source: str, options: Options
) -> list[LabeledSolution]:
    """Read all solutions that have at least one judged step.

    `records` are pairs (location for error messages, record). Image paths are relative to `root`. `source` applies to
    records that name no source.
    """
    found = []
    for location, record in records:
        try:
            parsed = DATASETS[name].read(record, options)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, DataError) as error:
            known = f"; it has the fields {', '.join(record)}"
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{location}: is not a record of {name}: {what}{known}; check the data set's name"
            ) from error
        if not parsed.steps or not all(isinstance(step, str) for step in parsed.steps):
            raise DataError(f"{location}: steps must be a list of at least one text; correct or remove the record")
        if len(parsed.steps) != len(parsed.correct):
            raise DataError(
                f"{location}: {len(parsed.steps)} steps but {len(parsed.correct)} labels; give one label per step, or "
                "remove the record"
            )
        if not isinstance(parsed.question, str):
            raise DataError(f"{location}: question must be text, got {parsed.question!r}; correct or remove the record")
        if all(correct is None for correct in parsed.correct):
            continue
        images = record_images(record, parsed.question, root, location)
        (question,) = place_marks([parsed.question], len(images), location, ["question"], "drop")
        # The location serves as the id, so that scorer errors name the line.
        solution = Solution(Problem(location, question, answer="", images=images), parsed.steps)
        # The data sets have no problem ids, so a problem is identified by its content.
        problem = json.dumps([parsed.question, [image.path or image_digest(image) for image in images]])
        found.append(LabeledSolution(solution, parsed.correct, problem, parsed.source or source))
    return found
