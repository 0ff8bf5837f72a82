"""Report the progress of a running or finished annotation campaign.

Examples:
  mmprm status runs/demo/annotate
  mmprm status runs/demo/annotate --watch
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import asdict

from mcts.status import CampaignStatus, read_status, status_text
from mmprm.cli.shared.options import columns
from mmprm.terminal import raw
from mmprm.trees.store import Store

WATCH_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("run", metavar="RUN", help="run folder of mmprm annotate")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="refresh every 2 s until the run stops")
    form.add_argument("--json", action="store_true", help="print all metrics as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm status`."""
    status = _read(arguments.run)
    if arguments.json:
        print(json.dumps(asdict(status), indent=2, ensure_ascii=False))
    elif arguments.watch and status.running:
        _watch(arguments.run)
    else:
        print(status_text(status, arguments.run, width=columns()))


def _read(run: str) -> CampaignStatus:
    store = Store.read(run)
    try:
        return read_status(store)
    finally:
        store.close()


def _watch(run: str) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=raw(sys.stdout))
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            status = _read(run)
            live.update(Text(status_text(status, run, width=columns())), refresh=True)
            if not status.running:
                return
            time.sleep(WATCH_SECONDS)
