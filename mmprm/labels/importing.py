"""Convert step labels from other projects to the Parquet format of mmprm labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from mmprm.config import PathText
from mmprm.data.images import image_bytes, suffix_of
from mmprm.data.marks import place_marks
from mmprm.data.record_images import record_images
from mmprm.data.rows import RowsConfig, read_rows
from mmprm.errors import ConfigError, DataError
from mmprm.labels.checks import Split
from mmprm.labels.formats import Record
from mmprm.labels.parquet import FLOAT32_ROUNDING, LabeledExample, split_of, write_parquet
from mmprm.labels.prefixes import prefix_keys
from mmprm.labels.sources import (
    LABEL_SOURCES,
    DroppedRecordError,
    NeutralAs,
    SourceOptions,
    SourceSolution,
    read_source,
)
from mmprm.problems import content_id
from mmprm.types import Counts, ImageRef, LabeledPath, Problem, Steps

SourceName = Literal[
    "steps",
    "prm800k",
    "math-shepherd",
    "visualprm",
    "visualprm-raw",
    "mm-prm",
    "trl",
    "openrlhf",
    "processbench",
    "visualprocessbench",
    "dualmath",
    "genprm",
]


class ImportConfig(RowsConfig):
    output: PathText
    """Parquet file to write."""
    format: SourceName
    """Layout of the records; steps is a plain layout with question, steps and labels."""
    rollouts: int | None = Field(None, ge=1)
    """Number of rollouts per label in layouts that store shares instead of counts, such as 16 for MM-PRM. It sets the
    counts and thus the weight of each label; null counts a label as one rollout."""
    neutral: NeutralAs | None = None
    """Meaning of a neutral rating in PRM800K and VisualProcessBench: correct, incorrect or none (no label). null means
    correct for PRM800K and none for VisualProcessBench."""
    alternatives: bool = True
    """Also import the alternative completions of PRM800K, each as a path that ends with it."""
    quality_control: bool = False
    """Also import PRM800K's quality control and screening questions, which several labelers answered."""
    invalid: Literal["error", "drop"] = "error"
    """How to handle a record that does not match the layout: stop with an error that names its line, or
    drop and count it."""
    image_root: PathText | None = None
    """Folder that relative image paths refer to; defaults to the folder of the file."""
    embed_images: bool = True
    """Whether to store image bytes, which makes the output self-contained, rather than image paths."""
    dev: float = Field(0.1, ge=0, lt=1)
    """Fraction of the problems in the dev split, which is held out from training."""
    test: float = Field(0.0, ge=0, lt=1)
    """Fraction of the problems in the test split."""
    only_split: Split | None = None
    """Split that receives all problems, such as test for a benchmark; null divides the problems according to dev and
    test."""
    seed: int = 0
    """Random seed for the split."""
    source: str | None = None
    """Name or URL of the data set, stored in the output; defaults to the hub id or the name of the file."""
    license: str | None = None
    """License of the data set, such as mit or cc-by-4.0, stored in the output and stated by mmprm push."""


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """Counts the records, problems, paths and labels of an import, including those dropped."""

    records: int
    problems: int
    paths: int
    labels: int
    correct: int
    """Number of labels with a value above 0."""
    dropped: dict[str, int]
    """Number of records or labels dropped, by reason."""


def import_labels(config: ImportConfig) -> ImportSummary:
    """Stream the records to a Parquet file, which is written atomically, and count the records and labels that are
    dropped.

    Raises DataError with file and line for a record of another layout (unless `invalid` is drop), for an unreadable
    image, and if no label remains.
    """
    if config.dev + config.test >= 1:
        raise ConfigError(
            f"dev={config.dev} and test={config.test} must sum to less than 1, to leave problems for training; try 0.1 "
            "and 0"
        )
    found = _Import(config)
    metadata = {"source": config.source or _name(config.path), "format": config.format}
    if config.license is not None:
        metadata["license"] = config.license
    write_parquet(config.output, found.examples(), metadata)
    return found.summary()


def _name(path: str) -> str:
    """Return a hub id unchanged, or only the last part of a local path, because its folders should not be published."""
    return Path(path).name if Path(path).exists() or "*" in path else path


class _Import:
    """Converts records to labeled examples, counting the labels that are read and dropped."""

    def __init__(self, config: ImportConfig) -> None:
        self._config = config
        self._options = SourceOptions(
            rollouts=config.rollouts,
            neutral=config.neutral or LABEL_SOURCES[config.format].neutral,
            alternatives=config.alternatives,
            quality_control=config.quality_control,
        )
        path = Path(config.path)
        self._root = Path(config.image_root or (path if path.is_dir() else path.parent)).absolute()
        self._ids: dict[str, str] = {}
        self._ids_by_content: dict[str, str] = {}
        self._values: dict[bytes, float] = {}
        self._records = self._paths = self._correct = 0
        self._dropped: Counter[str] = Counter()

    def examples(self) -> Iterator[LabeledExample]:
        """Yield the labeled solutions in file order; raise DataError if there are none."""
        for location, record in read_rows(self._config):
            self._records += 1
            try:
                yield from self._examples_of(record, location)
            except DroppedRecordError as reason:
                self._dropped[str(reason)] += 1
            except DataError:
                if self._config.invalid == "error":
                    raise
                self._dropped["invalid record"] += 1
        if not self._paths:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._dropped.items()) or "the file is empty"
            raise DataError(f"{self._config.path}: no label to import ({reasons}); check format={self._config.format}")

    def summary(self) -> ImportSummary:
        """Return the counts of everything read so far."""
        return ImportSummary(
            self._records, len(self._ids), self._paths, len(self._values), self._correct, dict(self._dropped)
        )

    def _examples_of(self, record: Record, location: str) -> list[LabeledExample]:
        """Convert a record to labeled examples; an invalid record leaves all counts unchanged."""
        try:
            found = list(read_source(self._config.format, record, self._options))
        except DataError as error:
            raise DataError(f"{location}: {error}; correct or remove it, or set invalid=drop") from error
        problems = [self._problem(solution, record, location) for solution in found]
        examples = (self._example(*pair) for pair in zip(problems, found, strict=True))
        return [example for example in examples if example is not None]

    def _example(self, problem: Problem, solution: SourceSolution) -> LabeledExample | None:
        content = _content(problem)
        self._ids.setdefault(problem.id, content)
        self._ids_by_content.setdefault(content, problem.id)
        steps = tuple(solution.steps)
        labels = self._new_labels(problem.id, steps, solution.labels)
        if all(label is None for label in labels):
            self._dropped["solution without a label of its own"] += 1
            return None
        self._paths += 1
        self._correct += sum(label is not None and (label.value or 0) > 0 for label in labels)
        complete = solution.complete and labels[-1] is not None
        config = self._config
        split = config.only_split or split_of(problem.id, config.seed, config.dev, config.test)
        return LabeledExample(problem, LabeledPath(problem.id, steps, labels, complete), split)

    def _new_labels(self, problem_id: str, steps: Steps, labels: Sequence[Counts | None]) -> tuple[Counts | None, ...]:
        """Return the labels of a solution, without those of prefixes that are already labeled."""
        kept: list[Counts | None] = []
        for key, label in zip(prefix_keys(problem_id, steps), labels, strict=True):
            if label is None or label.value is None:
                kept.append(None)
                continue
            if key not in self._values:
                self._values[key] = label.value
                kept.append(label)
                continue
            same = abs(self._values[key] - label.value) < FLOAT32_ROUNDING
            self._dropped["repeated label" if same else "repeated label with another value"] += 1
            kept.append(None)
        return tuple(kept)

    def _problem(self, solution: SourceSolution, record: Record, location: str) -> Problem:
        """Return the solution's problem, with an id that no other problem has.

        Its id is that of its first record, because the records of some data sets, such as ProcessBench, have an id per
        solution. If this id already belongs to another problem, or if there is none, its id is a hash of its content.
        """
        images = record_images(record, solution.question, self._root, location)
        (question,) = place_marks([solution.question], len(images), location, ["question"], "drop")
        for image in images:
            self._check_below_root(image, location)
        if self._config.embed_images:
            images = tuple(_embedded(image, location) for image in images)
        content = content_id(question, solution.answer, images)
        given = record.get("id")
        own = isinstance(given, str) and given != "" and self._ids.get(given, content) == content
        problem_id = self._ids_by_content.get(content) or (given if own else content)
        return Problem(problem_id, question, solution.answer, images)

    def _check_below_root(self, image: ImageRef, location: str) -> None:
        """Raise DataError for an image outside of the root, because an untrusted file could name any file to copy."""
        if image.path is not None and not Path(image.path).resolve().is_relative_to(self._root.resolve()):
            raise DataError(
                f"{location}: image {image.path} is not below {self._root}; if you trust the file, set image_root to "
                "the folder of the images"
            )


def _content(problem: Problem) -> str:
    return content_id(problem.question, problem.answer, problem.media)


def _embedded(image: ImageRef, location: str) -> ImageRef:
    """Return the image with its bytes; raise DataError if the file cannot be read or is not an image."""
    if image.data is not None:
        return image
    assert image.path is not None
    try:
        data = _bytes_of(image.path)
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{location}: image {image.path} cannot be read ({reason}); set image_root to the folder of the images, or "
            "embed_images=false"
        ) from error
    if not suffix_of(data):
        raise DataError(f"{location}: {image.path} is not an image; correct the record, or set invalid=drop")
    return ImageRef(data=data)


@lru_cache(maxsize=16)
def _bytes_of(path: str) -> bytes:
    """Read an image file, with a cache for consecutive solutions of the same problem."""
    return image_bytes(ImageRef(path=path))
