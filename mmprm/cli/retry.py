"""Reopen the failed problems of a run, once the cause of the failure is fixed.

Examples:
  mmprm retry runs/k12
  mmprm retry runs/k12 --match "cannot be read as an image"
  mmprm retry runs/k12 k12-00017 k12-00018
"""

from __future__ import annotations

import argparse

from mmprm.errors import DataError
from mmprm.trees.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("run", metavar="RUN", help="run folder of mmprm annotate")
    parser.add_argument("problems", metavar="PROBLEM", nargs="*", help="ids of failed problems; by default all of them")
    parser.add_argument(
        "--match", metavar="REASON", default="", help="reopen only those whose reason contains this text"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm retry`."""
    reader = Store.read(arguments.run)
    config = reader.config
    reader.close()
    store = Store.create_or_open(reader.path, config)
    try:
        chosen = choose(store.failures(), arguments.problems, arguments.match)
        store.reopen(chosen)
        left = len(store.failures())
    finally:
        store.close()
    print(
        f"{len(chosen)} problem{'s' if len(chosen) != 1 else ''} reopened, {left} still failed; run the same mmprm "
        f"annotate command (output={reader.path.parent}) again to search them"
    )


def choose(failures: dict[str, str], problems: list[str], match: str) -> list[str]:
    """Return the ids of the failed problems to reopen.

    Raises DataError if a named problem has not failed, or if there is no problem to reopen.
    """
    for problem_id in problems:
        if problem_id not in failures:
            raise DataError(
                f"{problem_id} is not a failed problem; see mmprm status for the failed ones and their reasons"
            )
    chosen = [
        problem_id
        for problem_id, reason in failures.items()
        if (not problems or problem_id in problems) and match.lower() in reason.lower()
    ]
    if not chosen:
        why = (
            f"none of the {len(failures)} failed problems has a reason that contains {match!r}"
            if failures
            else "none failed"
        )
        raise DataError(f"no problem to reopen: {why}; see mmprm status")
    return chosen
