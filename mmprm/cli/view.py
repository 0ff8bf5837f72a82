"""Write an HTML page for browsing a run: the search trees of mmprm annotate, or the logged rollouts of mmprm rl.

A page of trees shows steps colored by value, rollouts and the search order. A page of rollouts shows steps colored by
score and credit, and rewards by training step; `mmprm rl` also writes it when it ends. Both show images, the frames of
videos, and audio. For episodes, a page of trees shows the observation after each turn and, if the environment knows it,
the truth about the state.

Examples:
  mmprm view runs/demo/annotate
  mmprm view runs/k12 --problems 50 --output k12.html
  mmprm view runs/tiny/rl --rollouts 1000
  mmprm view runs/sokoban/annotate --prm runs/sokoban/train/prm
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmprm.errors import DataError
from mmprm.report.rollouts import DEFAULT_LIMIT, ROLLOUTS_FILE, SAMPLES_FILE, write_rollouts
from mmprm.report.training import METRICS_FILE
from mmprm.report.view import write_view
from mmprm.trees.store import Store
from mmprm.types import Scorer

_DEFAULT_PROBLEMS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("run", metavar="RUN", help="run folder of mmprm annotate or mmprm rl")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help=f"file to write (in the run folder: view.html for trees, {ROLLOUTS_FILE} for rollouts)",
    )
    parser.add_argument(
        "--problems",
        metavar="N",
        type=int,
        help=f"trees: maximum number of problems to show, evenly spread ({_DEFAULT_PROBLEMS})",
    )
    parser.add_argument(
        "--prm", metavar="FOLDER", help="episodes: process reward model whose scores of the turns are shown"
    )
    parser.add_argument(
        "--rollouts",
        metavar="N",
        type=int,
        help=f"rollouts: maximum number to show, of training steps that are evenly spread ({DEFAULT_LIMIT})",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm view`."""
    for name in ("problems", "rollouts"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise DataError(f"--{name}={value} must be at least 1; raise it")
    folder = Path(arguments.run)
    if all((folder / name).is_file() for name in (SAMPLES_FILE, METRICS_FILE)):
        _rollouts(arguments, folder)
    else:
        _trees(arguments)


def _rollouts(arguments: argparse.Namespace, folder: Path) -> None:
    if arguments.problems is not None:
        raise DataError(
            f"--problems={arguments.problems} is for a run of mmprm annotate, and {folder} is one of mmprm rl; use "
            "--rollouts"
        )
    if arguments.prm is not None:
        raise DataError(
            f"--prm={arguments.prm} is for a run of mmprm annotate, and {folder} is one of mmprm rl, which logs the "
            "scores of its own model; leave it out"
        )
    path = arguments.output or folder / ROLLOUTS_FILE
    shown, total = write_rollouts(path, folder, arguments.rollouts or DEFAULT_LIMIT)
    print(f"{path}: {shown} of {total} logged rollouts, {path.stat().st_size / 2**20:.1f} MiB; open it in a browser")


def _trees(arguments: argparse.Namespace) -> None:
    store = Store.read(arguments.run)
    try:
        if arguments.rollouts is not None:
            raise DataError(
                f"--rollouts={arguments.rollouts} is for a run of mmprm rl, and {arguments.run} is one of mmprm "
                "annotate; use --problems"
            )
        path = arguments.output or store.path.parent / "view.html"
        with _opened_scorer(arguments, store) as scorer:
            shown = write_view(path, store, arguments.problems or _DEFAULT_PROBLEMS, scorer)
        total = len(store.ids())
    finally:
        store.close()
    print(f"{path}: {shown} of {total} problems, {path.stat().st_size / 2**20:.1f} MiB; open it in a browser")


@contextmanager
def _opened_scorer(arguments: argparse.Namespace, store: Store) -> Iterator[Scorer | None]:
    if arguments.prm is None:
        yield None
        return
    if store.config.get("environment") is None:
        raise DataError(f"--prm={arguments.prm} scores the turns of episodes, and {arguments.run} has none; remove it")
    from mmprm.scoring.config import ScorerConfig
    from mmprm.scoring.open import open_scorer

    scorer = open_scorer(ScorerConfig(prm=arguments.prm, too_long="cut"))
    try:
        yield scorer
    finally:
        scorer.close()
