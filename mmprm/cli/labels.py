"""Convert search trees to labeled paths (Parquet), export or import them, or collect critiques that agree with them.

Examples:
  mmprm labels --set store=runs/demo/annotate --set output=runs/demo/labels.parquet
  mmprm labels export --format trl --set labels=runs/demo/labels.parquet --set output=runs/demo/trl
  mmprm labels import prm800k/phase2_train.jsonl --format prm800k --set output=runs/prm800k.parquet
  mmprm labels critiques --set labels=runs/demo/labels.parquet --set teacher.engine.model=Qwen/Qwen3-VL-8B-Thinking
"""

from __future__ import annotations

import argparse

from mmprm.cli import labels_critiques, labels_export, labels_import
from mmprm.cli.shared.options import add_config_options
from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.labels.build import LabelsConfig, build_labels

_ACTIONS = {
    "export": (labels_export, "write labeled paths in the format of another project"),
    "import": (labels_import, "read step labels made elsewhere, such as PRM800K or Math-Shepherd"),
    "critiques": (labels_critiques, "let a teacher write critiques, and keep those that agree with the labels"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, LabelsConfig, prefix="labels_")
    actions = parser.add_subparsers(dest="action", metavar="[export | import | critiques]")
    for name, (command, help_text) in _ACTIONS.items():
        summary, _, rest = (command.__doc__ or "").partition("\n")
        action = actions.add_parser(
            name,
            help=help_text,
            description=summary,
            epilog=rest.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(action)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm labels`."""
    if arguments.action is not None:
        name = arguments.action
        if arguments.labels_config is not None or arguments.labels_set:
            raise ConfigError(f"--config and --set before the word {name} apply to mmprm labels; put them after {name}")
        _ACTIONS[name][0].run(arguments)
        return
    config = load(LabelsConfig, arguments.labels_config, arguments.labels_set)
    summary = build_labels(config)
    counts = summary.counts
    splits = ", ".join(f"{name} {count}" for name, count in sorted(summary.paths_by_split.items()))
    print(
        f"{config.output}: {counts.problems:,} problems, {counts.paths:,} paths ({splits})\n"
        f"{counts.labels:,} labels; {counts.labels_terminal:,} terminal, {counts.terminal_correct:,} of them correct"
    )
