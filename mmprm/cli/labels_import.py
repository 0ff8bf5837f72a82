"""Import step labels made elsewhere, so that mmprm train and every other command can read them.

Records are streamed. The output is the Parquet file of mmprm labels, with each label of a prefix stored once.

Examples:
  mmprm labels import prm800k/phase2_train.jsonl --format prm800k --set output=runs/prm800k.parquet \\
      --set license=mit
  mmprm labels import math-shepherd.jsonl --format math-shepherd --set output=runs/shepherd.parquet
  mmprm labels import VisualPRM400K-v1.1-Raw/annotations --format visualprm-raw \\
      --set image_root=VisualPRM400K-v1.1-Raw/images --set output=runs/visualprm.parquet
  mmprm labels import mine.jsonl --format steps --set output=runs/mine.parquet

The layout "steps" has one object per line: {"question": …, "images": […], "steps": [a, b], "labels": [1.0, 0.25]}. A
label is a number in [0, 1], true or false, "+" or "-", {"correct": 3, "incorrect": 13}, {"correct": 3, "total": 16}, or
null.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.labels.importing import ImportConfig, ImportSummary, import_labels
from mmprm.labels.sources import LABEL_SOURCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("path", metavar="FILE", nargs="?", help="short for --set path=FILE")
    parser.add_argument("--format", metavar="NAME", help=f"short for --set format=NAME: {', '.join(LABEL_SOURCES)}")
    add_config_options(parser, ImportConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm labels import`."""
    given = {"path": arguments.path, "format": arguments.format}
    config = load_config(
        arguments, ImportConfig, *(f"{key}={value}" for key, value in given.items() if value is not None)
    )
    print("\n".join(summary_lines(config, import_labels(config))))


def summary_lines(config: ImportConfig, summary: ImportSummary) -> Iterator[str]:
    """Format the summary of the import as lines of text."""
    yield f"{config.output}: {summary.records:,} records of {config.format}"
    yield (
        f"{summary.problems:,} problems, {summary.paths:,} solutions, {summary.labels:,} labels "
        f"({summary.correct:,} above 0)"
    )
    for reason, count in sorted(summary.dropped.items()):
        yield f"dropped: {count:,} × {reason}"
    if config.license is None:
        yield "no license is stored; set license if you intend to share the labels or a model trained on them"
