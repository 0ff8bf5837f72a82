"""Show one problem's search tree in the terminal.

Each line is a labeled prefix of steps. It shows the prefix's index in search order (· if only other states' rollouts
label it), its value, its counts of correct and incorrect rollouts (and of those with unknown verdict), and the steps
that it adds to its parent.

Examples:
  mmprm tree runs/demo/annotate tiny-6bd7
  mmprm tree runs/demo/annotate tiny-6bd7 --all | less -R
"""

from __future__ import annotations

import argparse
import sys

from mmprm.errors import DataError
from mmprm.report.terminal import tree_lines
from mmprm.report.trees import grow
from mmprm.terminal import raw
from mmprm.trees.stopping import rule_of
from mmprm.trees.store import Store

NAMED = 8
"""Maximum number of matching ids to list in an error message."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("run", metavar="RUN", help="run folder of mmprm annotate")
    parser.add_argument("problem", metavar="PROBLEM", help="id of the problem, or its beginning")
    parser.add_argument("--all", action="store_true", help="also show the rollouts sampled from each state")


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm tree`."""
    from rich.console import Console

    store = Store.read(arguments.run)
    try:
        problem = store.problem(find_id(arguments.problem, store.ids()))
        status, reason = store.outcome(problem.id)
        tree, config = store.tree(problem.id), store.config
    finally:
        store.close()
    if not tree.nodes:
        raise DataError(
            f"{problem.id}: has no rollouts (status: {status}"
            + (f", {reason}" if reason else "")
            + "); choose another problem"
        )
    root = grow(tree, rule_of(config))
    ended = f"{status}, {reason}" if reason else status
    console = Console(file=raw(sys.stdout), highlight=False)
    console.print(tree_lines(problem, ended, root, config["step_format"], arguments.all))


def find_id(wanted: str, ids: list[str]) -> str:
    """Resolve `wanted` to a problem id: an exact match, or the only id that starts with this text."""
    fitting = [wanted] if wanted in ids else [known for known in ids if known.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    near = fitting or ids
    listed = ", ".join(near[:NAMED]) + (", …" if len(near) > NAMED else "")
    raise DataError(f"{wanted!r} matches the beginning of {len(fitting)} ids and must match one; give one of {listed}")
