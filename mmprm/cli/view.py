"""Write an HTML page for browsing a run's trees: images, steps colored by value, rollouts, search order.

Examples:
  mmprm view runs/demo/annotate
  mmprm view runs/k12 --problems 50 --output k12.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmprm.errors import DataError
from mmprm.report.view import write_view
from mmprm.trees.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("run", metavar="RUN", help="run folder of mmprm annotate")
    parser.add_argument("--output", metavar="FILE", type=Path, help="file to write (view.html in the run folder)")
    parser.add_argument(
        "--problems", metavar="N", type=int, default=200, help="maximum number of problems to show, evenly spread (200)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm view`."""
    if arguments.problems < 1:
        raise DataError(f"--problems={arguments.problems} must be at least 1; raise it")
    store = Store.read(arguments.run)
    try:
        path = arguments.output or store.path.parent / "view.html"
        shown = write_view(path, store, arguments.problems)
        total = len(store.ids())
    finally:
        store.close()
    print(f"{path}: {shown} of {total} problems, {path.stat().st_size / 2**20:.1f} MiB; open it in a browser")
