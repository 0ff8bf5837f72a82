"""Solutions whose steps were judged by people, or are known: a table of data sets with a reader each.

A reader turns one record into a LabelledSolution; KeyError, TypeError and ValueError in it mean that the record has
another form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmprm.data.columns import Columns, cells_of, check_media, check_unread_images, rest_of, used_names
from mmprm.data.image_cells import read_picture
from mmprm.data.images import image_digest
from mmprm.data.marks import place_marks
from mmprm.data.question import column_images
from mmprm.errors import DataError
from mmprm.files import parse_json
from mmprm.labels.formats import FORMATS
from mmprm.metrics import NO_ERROR
from mmprm.types import Picture, Problem, Solution

Record = dict[str, Any]
FigureName = Literal["first_error_f1", "macro_f1"]


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """`right` says of each step whether it is right, None where that is not known or the step is left out. Solutions of
    one problem share `problem`, whoever wrote them; `source` is the part of the data set that is reported apart."""

    solution: Solution
    right: tuple[bool | None, ...]
    problem: str
    source: str

    @property
    def first_error(self) -> int:
        """Index of the first wrong step; NO_ERROR without any."""
        return next((index for index, right in enumerate(self.right) if right is False), NO_ERROR)


class Parsed:
    """What a reader found in a record, beside its images."""

    def __init__(
        self,
        question: str,
        steps: Sequence[str],
        right: Sequence[bool | None],
        source: str | None = None,
    ) -> None:
        self.question = question
        self.steps = tuple(steps)
        self.right = tuple(right)
        self.source = source


@dataclass(frozen=True, slots=True)
class Options:
    """`format` names the form of "steps" files (see labels.formats); soft labels above `label_threshold` are right."""

    format: str = "prm800k"
    label_threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class Dataset:
    figure: FigureName
    read: Callable[[Record, Options], Parsed]


def read_processbench(record: Record, options: Options) -> Parsed:
    """`label` is the index of the first wrong step or -1; of the steps after it nothing is known."""
    steps, error = record["steps"], record["label"]
    if not isinstance(error, int) or not NO_ERROR <= error < len(steps):
        raise ValueError(f"label must be -1 or the index of one of the {len(steps)} steps, got {error!r}")
    known = len(steps) if error == NO_ERROR else error
    right = [True] * known + [False][: len(steps) - known] + [None] * (len(steps) - known - 1)
    return Parsed(record["problem"], steps, right)


def read_visualprocessbench(record: Record, options: Options) -> Parsed:
    """1 right, -1 wrong; 0, a step that is neither, is left out."""
    response = record["response"]
    response = parse_json(response, "response") if isinstance(response, str) else response
    right = [{1: True, -1: False, 0: None}[value] for value in response["process_correctness"]]
    return Parsed(record["question"], response["steps"], right, record.get("data_source"))


def read_steps(record: Record, options: Options) -> Parsed:
    question, steps, labels = FORMATS[options.format].read(record)
    right = [label if isinstance(label, bool | None) else label > options.label_threshold for label in labels]
    return Parsed(question, steps, right)


DATASETS: dict[str, Dataset] = {
    "processbench": Dataset("first_error_f1", read_processbench),
    "visualprocessbench": Dataset("macro_f1", read_visualprocessbench),
    "steps": Dataset("macro_f1", read_steps),
}


def read_labelled(
    name: str, records: Iterable[tuple[str, Record]], root: Path, source: str, options: Options
) -> list[LabelledSolution]:
    """All solutions of a file that have a judged step. Its pairs (place for error messages, record) may name pictures,
    relative to `root`; `source` is taken where a record has none of its own."""
    found = []
    for place, record in records:
        try:
            parsed = DATASETS[name].read(record, options)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, DataError) as error:
            known = f" ({', '.join(record)})"
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{place}: is no record of {name}: {what}{known}") from error
        if not parsed.steps or not all(isinstance(step, str) for step in parsed.steps):
            raise DataError(f"{place}: steps must be a list of at least one text")
        if len(parsed.steps) != len(parsed.right):
            raise DataError(f"{place}: {len(parsed.steps)} steps but {len(parsed.right)} labels; each step needs one")
        if not isinstance(parsed.question, str):
            raise DataError(f"{place}: the question must be text, got {parsed.question!r}")
        if all(right is None for right in parsed.right):
            continue
        pictures = _images(record, parsed.question, root, place)
        (question,) = place_marks([parsed.question], len(pictures), place, ["question"], "drop")
        # The place serves as the id, so that a scorer's complaint names the line.
        solution = Solution(Problem(place, question, answer="", pictures=pictures), parsed.steps)
        problem = json.dumps([parsed.question, [picture.path or image_digest(picture) for picture in pictures]])
        found.append(LabelledSolution(solution, parsed.right, problem, parsed.source or source))
    return found


def _images(record: Record, question: str, root: Path, place: str) -> tuple[Picture, ...]:
    """The images of a record, in the columns that problems have them in."""
    check_media(record, place)
    found = cells_of(record, Columns(), "pictures", place)
    images = tuple(read_picture(value, root, place) for value in column_images(found, root, place))
    if not images:
        check_unread_images(rest_of(record, used_names(record, found)), question, place)
    return images
