"""Keep the problems that the policy solves only sometimes: sample responses, and filter by accuracy.

The samples are stored in a separate run folder. When run again, the command resumes where it stopped; with another
--low or --high it reuses the samples. `accuracy`, `correct`, `incorrect` and `unknown` are added to the fields of each
kept problem.

Examples:
  mmprm filter --config configs/annotate/tiny.yaml --samples 8 --output runs/tiny/kept.jsonl
  mmprm filter --config configs/annotate/tiny.yaml --samples 8 --low 0.25 --high 0.75 --output runs/tiny/kept.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.difficulty import by_accuracy, check_range, question_only
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import policy_folder
from mmprm.errors import DataError
from mmprm.preflight import check_output
from mmprm.problems import load_problems, write_problems
from mmprm.trees.store import Store
from mmprm.types import Counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("--samples", type=int, default=8, help="samples per problem (8)")
    parser.add_argument("--low", type=float, default=0.1, help="minimum accuracy to keep (0.1)")
    parser.add_argument("--high", type=float, default=0.9, help="maximum accuracy to keep (0.9)")
    parser.add_argument("--output", metavar="FILE.jsonl", type=Path, required=True, help="file for the kept problems")
    keys = "The keys are those of mmprm annotate. `search` is ignored, and `output` defaults to runs/filter."
    parser.epilog = f"{parser.epilog}\n\n{keys}"
    add_config_options(parser, CampaignConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm filter`."""
    check_range(arguments.low, arguments.high)
    check_output(arguments.output, "--output", file=True)
    config = question_only(load_config(arguments, CampaignConfig, "output=runs/filter"), arguments.samples)
    run_campaign(config, model_folder=policy_folder(config.engine))
    asked = {problem.id: problem for problem in load_problems(config.problems, config.environment is not None)}
    store = Store.read(config.output)
    try:
        filtered = by_accuracy(store, asked.keys(), arguments.low, arguments.high)
    finally:
        store.close()
    left_out = (
        f"{filtered.too_hard} too hard, {filtered.too_easy} too easy, {filtered.no_known_verdict} without a known "
        f"verdict, {filtered.failed} failed"
    )
    if not filtered.kept:
        raise DataError(
            f"{config.output}: no problem has an accuracy between {arguments.low} and {arguments.high} ({left_out}); "
            "widen --low and --high"
        )
    problems = [asked[problem.id] for problem, _ in filtered.kept]  # includes the other columns of their rows
    write_problems(arguments.output, problems, {problem.id: _columns(counts) for problem, counts in filtered.kept})
    print(f"{arguments.output}: {len(problems)} problems kept; left out: {left_out}")


def _columns(counts: Counts) -> dict[str, float | int | None]:
    return {
        "accuracy": counts.value,
        "correct": counts.correct,
        "incorrect": counts.incorrect,
        "unknown": counts.unknown,
    }
