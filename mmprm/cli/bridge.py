"""Make cold-start data for a vision-language model from a text-only reasoning model, as Vision-R1 does.

A vision-language model (`seer`) explains each problem's known answer and describes its image. A text-only reasoning
model (`reasoner`) solves the problem from the description. Solutions with a correct answer are kept, phrases that
betray that a text was read are replaced, and the output folder receives kept.jsonl for `mmprm sft`, refused.jsonl,
summary.json, and samples.html. Every reply is cached, so a run that resumes requests only the missing ones.

Examples:
  mmprm bridge --set problems.path=data/train.jsonl --set output=runs/bridge \\
    --set seer.model=qwen2.5-vl-72b --set 'seer.client.urls=[http://localhost:8000/v1]' \\
    --set reasoner.model=deepseek-r1 --set 'reasoner.client.urls=[http://localhost:8001/v1]'
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from mmprm import actors
from mmprm.bridge.config import BridgeConfig
from mmprm.bridge.pipeline import KEPT_REASON, Bridge, BridgedProblem, bridge_problems
from mmprm.bridge.role import ModelRole
from mmprm.bridge.rows import write_rows_of
from mmprm.bridge.wording import Wording, read_wording
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.errors import DataError
from mmprm.grading.calibration import check_judge
from mmprm.grading.golds import check_golds
from mmprm.grading.open import open_grader
from mmprm.grading.reply_cache import ReplyCache
from mmprm.preflight import check_output
from mmprm.problems import load_problems
from mmprm.report.bridge import bridge_page
from mmprm.report.page import write_page
from mmprm.types import Problem

PROGRESS_SECONDS = 30
"""Interval between progress lines, in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, BridgeConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm bridge`."""
    config = load_config(arguments, BridgeConfig)
    wording = read_wording(config.wording)
    check_judge(config.grader.judge)
    check_output(config.output, "output")
    problems = load_problems(config.problems)
    check_golds(problems, config.grader, config.problems.path)
    found = actors.run(_bridged(problems, wording, config))
    summary = write_rows_of(found, config)
    folder = Path(config.output)
    write_page(folder / "samples.html", bridge_page(found, summary, config.samples_shown))
    counts = ", ".join(f"{reason} {count:,}" for reason, count in summary["refused"].items()) or "none refused"
    if not summary["kept"]:
        raise DataError(f"{folder / 'refused.jsonl'}: no problem was kept ({counts}); read the reasons there")
    print(f"{folder / 'kept.jsonl'}: {summary['kept']:,} of {summary['problems']:,} problems kept; {counts}")
    print(f"read some rows before you train on them: {folder / 'samples.html'}")


async def _bridged(problems: Sequence[Problem], wording: Wording, config: BridgeConfig) -> list[BridgedProblem]:
    cache = ReplyCache(config.cache or Path(config.output) / "replies.sqlite")
    try:
        async with AsyncExitStack() as stack:
            grader = await stack.enter_async_context(open_grader(config.grader))
            seer = await stack.enter_async_context(ModelRole(config.seer, cache))
            reasoner = await stack.enter_async_context(ModelRole(config.reasoner, cache))
            bridge = Bridge(seer, reasoner, grader, wording, config)
            progress = _Progress(len(problems))
            urls = ", ".join(dict.fromkeys((*config.seer.client.urls, *config.reasoner.client.urls)))
            print(f"{len(problems):,} problems; asking {urls}", file=sys.stderr)
            found = await bridge_problems(problems, bridge, progress.add)
            asked, cached = seer.asked + reasoner.asked, seer.cached + reasoner.cached
            print(f"{asked:,} requests, {cached:,} replies from the cache", file=sys.stderr)
            return found
    finally:
        cache.close()


class _Progress:
    """Prints the number of finished and kept problems periodically."""

    def __init__(self, total: int) -> None:
        self._total, self._finished, self._kept, self._printed = total, 0, 0, time.monotonic()

    def add(self, found: BridgedProblem) -> None:
        """Count a finished problem."""
        self._finished += 1
        self._kept += found.reason == KEPT_REASON
        if time.monotonic() - self._printed > PROGRESS_SECONDS:
            print(f"{self._finished:,} of {self._total:,} problems, {self._kept:,} kept", file=sys.stderr)
            self._printed = time.monotonic()
