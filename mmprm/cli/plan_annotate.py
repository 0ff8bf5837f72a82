"""Estimate the cost of an annotation campaign from a pilot run on a few dozen problems.

For the memory of its engines, pass the campaign's file to `mmprm plan serve --config FILE`.

Example:
  mmprm plan annotate --problems 10000 --pilot runs/pilot --engines 64
"""

from __future__ import annotations

import argparse
import os

from mcts.plan import estimate_campaign, plan_text
from mmprm.errors import DataError
from mmprm.trees.store import Store
from mmprm.trees.tallies import sessions, tallies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("--problems", type=int, required=True, help="number of problems of the campaign")
    parser.add_argument(
        "--pilot", metavar="RUN", required=True, help="run folder of a finished pilot with the same configuration"
    )
    parser.add_argument("--engines", type=int, help="number of engines of the campaign, for its wall time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (0)")


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan annotate`."""
    for name in ("problems", "engines"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise DataError(f"--{name}={value} must be at least 1; raise it")
    store = Store.read(arguments.pilot)
    try:
        engine_seconds = sum(session.engine_seconds for session in sessions(store))
        size = os.path.getsize(store.path)
        expected = estimate_campaign(tallies(store), engine_seconds, size, arguments.problems, arguments.seed)
    finally:
        store.close()
    print(plan_text(expected, arguments.pilot, arguments.engines))
