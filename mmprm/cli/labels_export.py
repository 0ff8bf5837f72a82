"""Export labeled paths to another project's training format.

The output folder holds train.jsonl, dev.jsonl and test.jsonl (labels.parquet for --format parquet), images/ if the
records name images, and export.json, which lists what was dropped and why.

Examples:
  mmprm labels export --format trl --set labels=runs/demo/labels.parquet --set output=runs/demo/trl
  mmprm labels export --format mm-prm --set labels=runs/demo/labels.parquet --set output=runs/demo/mm-prm \\
      --set negatives=1 --set benchmark=test.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.labels.export import ExportConfig, ExportSummary, export_labels
from mmprm.labels.formats import LABEL_FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument(
        "--format", metavar="NAME", help=f"short for --set format=NAME: {', '.join(LABEL_FORMATS)}, parquet"
    )
    add_config_options(parser, ExportConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm labels export`."""
    chosen = [] if arguments.format is None else [f"format={arguments.format}"]
    config = load_config(arguments, ExportConfig, *chosen)
    print("\n".join(lines_of(config, export_labels(config))))


def lines_of(config: ExportConfig, summary: ExportSummary) -> Iterator[str]:
    """Format the summary of the export as lines of text."""
    yield f"{config.output}: {config.format}, {summary.kind} labels"
    for name, split in summary.splits.items():
        yield (
            f"{name}: {split.problems:,} problems, {split.solutions:,} solutions, {split.labels:,} labels "
            f"({split.correct:,} correct, {split.labels - split.correct:,} incorrect: not above {config.threshold:g})"
        )
    yield f"near-duplicates dropped: {len(summary.duplicates):,} problems"
    if config.negatives is not None:
        dropped = f"negative labels dropped from train: {summary.negatives_dropped:,}"
        yield f"{dropped} (at most {config.negatives:g} per positive label)"
    if config.agree is not None:
        yield f"labels dropped because the judge disagrees: {summary.disagreements_dropped:,}"
    if summary.unfit:
        unfit = sum(summary.unfit.values())
        yield f"left out: {unfit:,} solutions whose text contains markers that {config.format} reserves"
    if summary.images_left_out:
        yield f"left out: the images of {summary.images_left_out:,} problems; {config.format} stores text only"
    for path, overlap in summary.overlap.items():
        yield f"overlap with {path}: {len(overlap):,} of its problems" + _first(list(overlap))


def _first(ids: list[str]) -> str:
    return f" ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''}; see export.json)" if ids else ""
