"""Read solutions whose step correctness is known from human judgments or other labels, with one reader per data set.

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
from mmprm.evaluation.prmbench import read_prmbench_record
from mmprm.labels.formats import LABEL_FORMATS, Record
from mmprm.labels.sources import LABEL_SOURCES, SourceOptions
from mmprm.metrics import NO_ERROR
from mmprm.types import Problem, Solution

MetricName = Literal["first_error_f1", "macro_f1", "prm_score"]


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
    """Holds the contents of a record except for its images. Of several records with the same `key`, only the first is
    used."""

    def __init__(
        self,
        question: str,
        steps: Sequence[str],
        correct: Sequence[bool | None],
        source: str | None = None,
        key: object = None,
    ) -> None:
        self.question = question
        self.steps = tuple(steps)
        self.correct = tuple(correct)
        self.source = source
        self.key = key


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


def _reader_of(name: str) -> Callable[[Record, Options], Parsed]:
    """Return a reader that parses records as mmprm labels import does, and counts values above 0 as correct."""

    def read(record: Record, options: Options) -> Parsed:
        source = LABEL_SOURCES[name]
        (solution,) = source.read(record, SourceOptions(neutral=source.neutral))
        values = [None if label is None else label.value for label in solution.labels]
        correct = [None if value is None else value > 0 for value in values]
        return Parsed(solution.question, solution.steps, correct, record.get("data_source"))

    return read


def read_steps(record: Record, options: Options) -> Parsed:
    """Read a record in one of the formats in labels.formats."""
    question, steps, labels = LABEL_FORMATS[options.format].read(record)
    correct = [label if isinstance(label, bool | None) else label > options.label_threshold for label in labels]
    return Parsed(question, steps, correct)


def read_prmbench(record: Record, options: Options) -> Parsed:
    """Read a record of PRMBench; see evaluation.prmbench."""
    return Parsed(*read_prmbench_record(record))


DATASETS: dict[str, Dataset] = {
    "processbench": Dataset("first_error_f1", _reader_of("processbench")),
    "visualprocessbench": Dataset("macro_f1", _reader_of("visualprocessbench")),
    "prmbench": Dataset("prm_score", read_prmbench),
    "steps": Dataset("macro_f1", read_steps),
}


def read_labeled(
    name: str, records: Iterable[tuple[str, Record]], root: Path, source: str, options: Options
) -> list[LabeledSolution]:
    """Read all solutions that have at least one judged step.

    `records` are pairs (location for error messages, record). Image paths are relative to `root`. `source` applies to
    records that name no source.
    """
    found: list[LabeledSolution] = []
    keys: set[object] = set()
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
        if all(correct is None for correct in parsed.correct) or (parsed.key is not None and parsed.key in keys):
            continue
        keys.add(parsed.key)
        images = record_images(record, parsed.question, root, location)
        (question,) = place_marks([parsed.question], len(images), location, ["question"], "drop")
        # The location serves as the id, so that scorer errors name the line.
        solution = Solution(Problem(location, question, answer="", images=images), parsed.steps)
        # The data sets have no problem ids, so a problem is identified by its content.
        problem = json.dumps([parsed.question, [image.path or image_digest(image) for image in images]])
        found.append(LabeledSolution(solution, parsed.correct, problem, parsed.source or source))
    return found
