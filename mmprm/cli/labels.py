"""Convert searched trees to labeled paths (Parquet), or export these to another project's format.

Examples:
  mmprm labels --set store=runs/demo/annotate --set output=runs/demo/labels.parquet
  mmprm labels export --format trl --set labels=runs/demo/labels.parquet --set output=runs/demo/trl
"""

from __future__ import annotations

import argparse

from mmprm.cli import labels_export
from mmprm.cli.shared.options import add_config_options
from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.labels.build import LabelsConfig, build_labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, LabelsConfig, prefix="labels_")
    actions = parser.add_subparsers(dest="action", metavar="[export]")
    summary, _, rest = (labels_export.__doc__ or "").partition("\n")
    export = actions.add_parser(
        "export",
        help="write labeled paths in the format of another project",
        description=summary,
        epilog=rest.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    labels_export.add_arguments(export)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm labels`."""
    if arguments.action == "export":
        if arguments.labels_config is not None or arguments.labels_set:
            raise ConfigError("--config and --set before the word export apply to mmprm labels; put them after export")
        labels_export.run(arguments)
        return
    config = load(LabelsConfig, arguments.labels_config, arguments.labels_set)
    summary = build_labels(config)
    counts = summary.counts
    splits = ", ".join(f"{name} {count}" for name, count in sorted(summary.paths_by_split.items()))
    print(
        f"{config.output}: {counts.problems:,} problems, {counts.paths:,} paths ({splits})\n"
        f"{counts.labels:,} labels; {counts.labels_terminal:,} terminal, {counts.terminal_correct:,} of them correct"
    )
