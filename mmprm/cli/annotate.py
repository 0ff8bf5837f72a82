"""Label reasoning steps by tree search over rollouts, or label the steps of solutions that you already have.

When run again, the command resumes where it stopped.

Examples:
  mmprm annotate --config configs/annotate/tiny.yaml
  mmprm annotate --config configs/annotate/internvl3-8b.yaml --set problems.path=k12.parquet --set output=runs/k12
  mmprm annotate --config configs/annotate/tiny.yaml --set search.max_rollouts=1000 --fork
  mmprm annotate --solutions solutions.jsonl --set engine.model=Qwen/Qwen2.5-VL-7B-Instruct --set output=runs/given
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcts.campaign import SUMMARY_NAME, run_campaign
from mcts.config import CampaignConfig
from mcts.fork import fork
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import policy_folder
from mmprm.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument(
        "--solutions",
        metavar="FILE",
        help="label the steps of these solutions instead of searching; short for --set solutions.path=FILE",
    )
    parser.add_argument(
        "--fork",
        action="store_true",
        help="if the run folder has another configuration, continue in a copy of it (RUN-2, …)",
    )
    add_config_options(parser, CampaignConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm annotate`."""
    given = [] if arguments.solutions is None else [f"solutions.path={arguments.solutions}"]
    config = load_config(arguments, CampaignConfig, *given)
    if arguments.fork:
        config, message = fork(config)
        if message:
            print(message)
    summary = run_campaign(config, model_folder=policy_folder(config.engine))
    for problem_id, reason in summary.failures.items():
        print(f"failed {problem_id}: {reason}")
    what = "problems" if config.solutions is None else "solutions"
    ended = ", ".join(f"{reason} {count}" for reason, count in summary.ended.items())
    print(
        f"{summary.problems['done']} {what} done ({ended}), {summary.problems['failed']} failed; "
        f"{summary.labels:,} labels from {summary.rollouts:,} rollouts; {Path(config.output) / SUMMARY_NAME} holds the "
        "details"
    )
    if not summary.problems["done"]:
        raise DataError(
            f"{config.problems.path}: none of the {summary.problems['failed']} {what} could be annotated; mmprm "
            f"status {config.output} lists the reasons"
        )
