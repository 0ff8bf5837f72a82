"""Turn searched trees into labelled paths (Parquet).

Example:
  mmprm labels --set store=runs/demo/annotate --set output=runs/demo/labels.parquet
"""

from __future__ import annotations

import argparse

from mmprm.cli.options import add_config_options, load_config
from mmprm.labels.build import LabelsConfig, build_labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser, LabelsConfig)


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, LabelsConfig)
    summary = build_labels(config)
    counts = summary.counts
    splits = ", ".join(f"{name} {count}" for name, count in sorted(summary.paths_by_split.items()))
    print(
        f"{config.output}: {counts.problems:,} problems, {counts.paths:,} paths ({splits})\n"
        f"{counts.labels:,} labels; {counts.labels_terminal:,} terminal, {counts.terminal_right:,} of them right"
    )
