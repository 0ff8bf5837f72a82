"""Export the Parquet file of mmprm labels in another training project's format."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mmprm.config import Config, PathText
from mmprm.data.media import unreadable_media
from mmprm.errors import ConfigError, DataError
from mmprm.labels.checks import check_images_below, check_splits
from mmprm.labels.consensus import AGREEMENTS, AgreementRule, relabeled
from mmprm.labels.duplicates import near_duplicates
from mmprm.labels.formats import LABEL_FORMATS, LabelFormat, LabelKind, OutputRow, content_of, record_of, repeat_shared
from mmprm.labels.parquet import LabeledExample, Split, read_metadata, read_parquet, split_of, write_parquet
from mmprm.problems import ProblemsConfig, load_problems, write_image
from mmprm.types import Counts, Problem

_HARD_ONLY = {
    "trl": "its trainer casts labels to int, so that 0.94 becomes 0",
    "math-shepherd": "its labels are + and -",
    "prm800k": "its ratings are 1 and -1",
    "visualprm": "its answers are + and -",
}


class ExportConfig(Config):
    labels: PathText
    """Parquet file written by mmprm labels."""
    output: PathText
    """Folder to write; must be empty or not exist."""
    format: Literal["trl", "math-shepherd", "prm800k", "visualprm", "mm-prm", "openrlhf", "parquet"]
    """Record format; parquet is the format of mmprm labels itself."""
    kind: LabelKind | None = None
    """Kind of labels to write. soft: the share of correct rollouts; hard: correct or incorrect. Defaults to soft if the
    format supports it."""
    threshold: float = Field(0.0, ge=0, lt=1)
    """Share of correct rollouts above which a label counts as positive and, if kind=hard, is written as correct."""
    negatives: float | None = Field(None, gt=0)
    """Maximum number of negative labels per positive label in the train split; the surplus is dropped at random. null
    keeps all."""
    agree: Literal["steps", "first_errors"] | None = None
    """How an exported label must agree with the judge of mmprm consensus. steps: keep only labels that the judge
    confirms; first_errors: keep only solutions in which both find the first error at the same step."""
    rule: AgreementRule = AgreementRule()
    """Thresholds at which the label and the judge count a step as correct."""
    dev: float | None = Field(None, ge=0, lt=1)
    """Fraction of the problems in the dev split. If neither dev nor test is set, the stored split is used."""
    test: float | None = Field(None, ge=0, lt=1)
    """Fraction of the problems in the test split."""
    image_root: PathText | None = None
    """Folder that must contain the image files named in `labels`; defaults to the folder of `labels`."""
    benchmark: tuple[PathText, ...] = ()
    """Problem files to check for near-duplicates, which are reported but not removed from the export."""
    seed: int = 0
    """Random seed for choosing negative labels and, if dev or test is set, for the split."""

    @field_validator("benchmark", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Counts the problems, solutions and labels in one split."""

    problems: int
    solutions: int
    labels: int
    correct: int
    """Number of labels above the threshold."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """Summarizes an export, including everything that was left out."""

    kind: LabelKind
    splits: dict[str, SplitCounts]
    duplicates: dict[str, str]
    """Maps each dropped problem to its near-duplicate that was kept."""
    negatives_dropped: int
    disagreements_dropped: int
    """Number of labels dropped because the judge disagrees."""
    unfit: dict[str, int]
    """Maps problem ids to the number of solutions left out because they contain text reserved by the format."""
    images_left_out: int
    """Number of problems whose images are left out because the format cannot represent them."""
    overlap: dict[str, dict[str, str]]
    """Maps each benchmark file to a dict from the ids of its problems to the ids of their near-duplicates in the
    export."""


def export_labels(config: ExportConfig) -> ExportSummary:
    """Write the export folder atomically and return a summary.

    The folder holds train.jsonl, dev.jsonl and test.jsonl (or labels.parquet for parquet), images/ if the format uses
    image files, and export.json with the summary.
    """
    kind, output, form = _kind(config), Path(config.output), LABEL_FORMATS.get(config.format)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output={config.output} exists and is not empty; remove it or choose another folder")
    examples = _split(read_parquet(config.labels), config)
    labels_read = _label_count(examples)
    if config.agree is not None:
        if all(example.judged is None for example in examples):
            raise ConfigError(f"agree={config.agree} needs a judge, and {config.labels} has none; run mmprm consensus")
        examples = AGREEMENTS[config.agree](examples, config.rule)
    disagreements = labels_read - _label_count(examples)
    # Runs after the agreement filter, which decides how many labels each duplicate has left, and before balancing.
    duplicates = drop_duplicates(examples)
    examples, negatives = balance([example for example in examples if example.problem.id not in duplicates], config)
    if not examples:
        raise DataError(
            f"{config.labels}: agree, rule and negatives leave no label; relax these settings, or give a file with "
            "more labels"
        )
    problems = _problems(examples)
    for problem in problems if form is not None else ():
        if problem.videos or problem.audios:
            raise DataError(
                f"{config.labels}: problem {problem.id!r} has videos or audio, which format={config.format} cannot "
                "hold; use format=parquet, or remove its rows"
            )
    if form is not None and form.images:
        check_images_below(problems, Path(config.image_root or Path(config.labels).parent), config.labels)
        for problem_id, why in unreadable_media((each.id, each.media) for each in problems).items():
            raise DataError(f"{config.labels}: problem {problem_id!r}: {why}; correct or remove its rows")
    overlap = {path: _overlap(examples, path) for path in config.benchmark}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
            folder = Path(temporary) / "export"
            folder.mkdir()
            unfit: Counter[str] = Counter()
            origin = read_metadata(config.labels)
            if form is None:
                write_parquet(folder / "labels.parquet", examples, origin)
            else:
                examples, unfit = _write_records(folder, examples, form, kind, config)
            left_out = form is not None and not form.images
            summary = ExportSummary(
                kind=kind,
                splits=_count(examples, config.threshold),
                duplicates=duplicates,
                negatives_dropped=negatives,
                disagreements_dropped=disagreements,
                unfit=dict(unfit),
                images_left_out=left_out * sum(bool(problem.images) for problem in _problems(examples)),
                overlap=overlap,
            )
            report = {"config": config.model_dump(), "origin": origin, **asdict(summary)}
            (folder / "export.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
            os.replace(folder, output)  # fails if another export has filled `output` in the meantime
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error}); free some disk space or choose another folder"
        ) from error
    return summary


def drop_duplicates(examples: Sequence[LabeledExample]) -> dict[str, str]:
    """Map each dropped problem to the near-duplicate that is kept: the one with more labels or, on a tie, the smaller
    id."""
    labels: Counter[str] = Counter()
    for example in examples:
        labels[example.problem.id] += sum(counts is not None for counts in example.path.counts)
    problems = sorted(_problems(examples), key=lambda problem: (-labels[problem.id], problem.id))
    return {problems[position].id: problems[first].id for position, first in near_duplicates(problems).items()}


def _label_count(examples: Sequence[LabeledExample]) -> int:
    return sum(counts is not None for example in examples for counts in example.path.counts)


def _kind(config: ExportConfig) -> LabelKind:
    """Return the kind of labels to write; raise ConfigError if the format does not support the requested kind."""
    kinds: tuple[LabelKind, ...] = ("soft",) if config.format == "parquet" else LABEL_FORMATS[config.format].kinds
    kind = config.kind or kinds[0]
    if kind not in kinds:
        why = _HARD_ONLY.get(config.format, "it keeps the counts, from which mmprm train takes targets.kind=hard")
        raise ConfigError(f"kind={kind} does not work with format={config.format}: {why}; use kind={kinds[0]}")
    return kind


def _split(examples: Sequence[LabeledExample], config: ExportConfig) -> list[LabeledExample]:
    """Return the examples with their stored splits, or with new splits if dev or test is set."""
    if config.dev is None and config.test is None:
        stored: dict[str, Split] = {}
        for example in examples:
            if stored.setdefault(example.problem.id, example.split) != example.split:
                raise DataError(
                    f"{config.labels}: problem {example.problem.id} is in two splits; set dev and test to split again"
                )
        check_splits(stored.values(), config.labels, "set dev and test to split again")
        return list(examples)
    dev, test = config.dev or 0.0, config.test or 0.0
    if dev + test >= 1:
        raise ConfigError(
            f"dev={dev} and test={test} must sum to less than 1, to leave problems for training; try 0.1 and 0"
        )
    return [replace(example, split=split_of(example.problem.id, config.seed, dev, test)) for example in examples]


def balance(examples: Sequence[LabeledExample], config: ExportConfig) -> tuple[list[LabeledExample], int]:
    """Drop surplus negative labels from the train split; return the examples that still have labels and the number of
    labels dropped.

    The choice depends on the seed and on each label's problem and steps, not on the order of the file.
    """
    positive, negative = 0, []
    for number, example in enumerate(examples):
        for depth, counts in enumerate(example.path.counts, start=1):
            if example.split == "train" and counts is not None:
                if _above(counts, config.threshold):
                    positive += 1
                else:
                    # Sorting by hash makes the choice random, but independent of the order of the file.
                    content = json.dumps([config.seed, example.problem.id, example.path.steps[:depth]])
                    negative.append((hashlib.sha256(content.encode()).digest(), number, depth))
    surplus = [] if config.negatives is None else sorted(negative)[int(config.negatives * positive) :]
    taken = {(number, depth) for _, number, depth in surplus}
    result = []
    for number, example in enumerate(examples):
        kept = tuple(
            None if (number, depth) in taken else counts for depth, counts in enumerate(example.path.counts, start=1)
        )
        if any(counts is not None for counts in kept):
            result.append(relabeled(example, kept))
    return result, len(surplus)


def _overlap(examples: Sequence[LabeledExample], benchmark: str) -> dict[str, str]:
    """Map the id of each benchmark problem that has a near-duplicate in the export to the id of that near-duplicate.

    The exported problems come first in the comparison and contain no duplicates, so each match is one of them.
    """
    ours = _problems(examples)
    both = [*ours, *load_problems(ProblemsConfig(path=benchmark))]
    matches = near_duplicates(both)
    return {both[index].id: both[first].id for index, first in matches.items() if first < len(ours)}


def _write_records(
    folder: Path, examples: Sequence[LabeledExample], form: LabelFormat, kind: LabelKind, config: ExportConfig
) -> tuple[list[LabeledExample], Counter[str]]:
    """Write the records; return the written examples and the number of omitted solutions per problem."""
    images: dict[str, tuple[str, ...]] = {}
    lines: dict[str, list[str]] = defaultdict(list)
    written, unfit = [], Counter()
    paths = [example.path for example in examples]
    for example, path in zip(examples, paths if form.join is None else repeat_shared(paths), strict=True):
        problem = example.problem
        content = content_of(path, problem, form, kind, config.threshold)
        assert content is not None, "examples without a label were dropped before"
        if form.images and problem.id not in images:
            images[problem.id] = tuple(write_image(image, folder) for image in problem.images)
        record = record_of(OutputRow(content, problem, example.path.complete, images.get(problem.id, ())), form)
        if record is None:
            unfit[problem.id] += 1
        else:
            lines[example.split].append(json.dumps(record, ensure_ascii=False) + "\n")
            written.append(example)
    if not written:
        raise DataError(
            f"{config.labels}: all solutions contain text that format={config.format} reserves; use another format"
        )
    for split, texts in lines.items():
        (folder / f"{split}.jsonl").write_text("".join(texts), encoding="utf-8")
    return written, unfit


def _count(examples: Sequence[LabeledExample], threshold: float) -> dict[str, SplitCounts]:
    found = {}
    for split in ("train", "dev", "test"):
        paths = [example.path for example in examples if example.split == split]
        labels = [counts for path in paths for counts in path.counts if counts is not None]
        correct = sum(_above(counts, threshold) for counts in labels)
        if paths:
            found[split] = SplitCounts(len({path.problem_id for path in paths}), len(paths), len(labels), correct)
    return found


def _problems(examples: Sequence[LabeledExample]) -> list[Problem]:
    return list({example.problem.id: example.problem for example in examples}.values())


def _above(counts: Counts, threshold: float) -> bool:
    return counts.value is not None and counts.value > threshold
