"""Make cold-start data for a vision-language model from a text-only reasoning model, as Vision-R1 does.

A vision-language model (`seer`) explains each problem's known answer and describes its image. A text-only reasoning
model (`reasoner`) solves the problem from the description. Solutions with a correct answer are kept, phrases that
betray that a text was read are replaced, and the output folder receives kept.jsonl for `mmprm sft`, refused.jsonl,
summary.json, and samples.html. Every reply is cached, so a run that resumes requests only the missing ones. Each model
runs on vLLM engines of this command or on OpenAI-compatible servers.

Examples:
  mmprm bridge --set problems.path=data/train.jsonl --set output=runs/bridge \\
    --set seer.engine.model=Qwen/Qwen2.5-VL-7B-Instruct \\
    --set reasoner.engine.model=deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
  mmprm bridge --set problems.path=data/train.jsonl --set output=runs/bridge \\
    --set seer.engine.model=qwen2.5-vl-72b --set 'seer.engine.servers.urls=[http://localhost:8000/v1]' \\
    --set reasoner.engine.model=deepseek-r1 --set 'reasoner.engine.servers.urls=[http://localhost:8001/v1]'
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from mmprm import actors
from mmprm.bridge.config import BridgeConfig, RoleConfig
from mmprm.bridge.pipeline import KEPT_REASON, Bridge, BridgedProblem, bridge_problems, why_not_described
from mmprm.bridge.prompts import explain_request, solve_request
from mmprm.bridge.role import ModelRole
from mmprm.bridge.rows import write_rows_of
from mmprm.bridge.wording import Wording, read_wording
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import policy_folder
from mmprm.errors import DataError, MmprmError
from mmprm.grading.calibration import check_judge
from mmprm.grading.golds import check_golds
from mmprm.grading.open import open_grader
from mmprm.grading.reply_cache import ReplyCache
from mmprm.preflight import check_output, check_policy
from mmprm.problems import load_problems
from mmprm.report.bridge import bridge_page
from mmprm.report.page import write_page
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.dtype import with_dtype
from mmprm.sampling.open import open_sampler
from mmprm.types import Problem, Sampler

PROGRESS_SECONDS = 30
"""Interval between progress lines, in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, BridgeConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm bridge`."""
    config = _with_models(load_config(arguments, BridgeConfig))
    wording = read_wording(config.wording)
    check_judge(config.grader.judge)
    check_output(config.output, "output")
    problems = load_problems(config.problems)
    check_golds(problems, config.grader, config.problems.path)
    _check_models(problems, config)
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
            seer, reasoner = [
                await stack.enter_async_context(ModelRole(role, cache, partial(_opened, role, config)))
                for role in (config.seer, config.reasoner)
            ]
            bridge = Bridge(seer, reasoner, grader, wording, config)
            progress = _Progress(len(problems))

            async def between() -> None:
                print("all images are described; the reasoner's engines replace the seer's", file=sys.stderr)
                await seer.close()
                progress.restart()

            models = " and ".join(dict.fromkeys(_named(role.engine) for role in (config.seer, config.reasoner)))
            print(f"{len(problems):,} problems; asking {models}", file=sys.stderr)
            found = await bridge_problems(problems, bridge, progress.add, between if config.takes_turns else None)
            asked, cached = seer.asked + reasoner.asked, seer.cached + reasoner.cached
            print(f"{asked:,} requests, {cached:,} replies from the cache", file=sys.stderr)
            return found
    finally:
        cache.close()


@asynccontextmanager
async def _opened(role: RoleConfig, config: BridgeConfig) -> AsyncIterator[Sampler]:
    """Start the role's engines, or connect to its servers."""
    engine = role.engine
    if engine.servers is None:
        actors.connect(config.ray_address)
    limit = config.start_timeout_seconds
    async with open_sampler(engine, role.sampling, role.prompt, config.workers, limit, reasoning="join") as sampler:
        yield sampler


def _with_models(config: BridgeConfig) -> BridgeConfig:
    """Return the configuration with model folders for the name `tiny`, and with data types in place of `auto`."""
    roles = {}
    for name in ("seer", "reasoner"):
        role = getattr(config, name)
        folder = policy_folder(role.engine)
        engine = with_dtype(role.engine, config.ray_address, model_folder=folder)
        engine = engine if folder is None else engine.model_copy(update={"model": folder})
        roles[name] = role.model_copy(update={"engine": engine})
    return config.model_copy(update=roles)


def _check_models(problems: Sequence[Problem], config: BridgeConfig) -> None:
    """Run the preflight checks of both models with the requests that they will receive; errors name the role."""
    pictured = [problem for problem in problems if why_not_described(problem) is None]
    for name, build in (("seer", explain_request), ("reasoner", partial(solve_request, description=""))):
        role = getattr(config, name)
        requests = [build(problem) for problem in pictured]
        try:
            if requests:
                check_policy(role.engine, role.sampling, role.prompt, requests)
        except MmprmError as error:
            raise type(error)(f"{name}: {error}") from error


def _named(engine: EngineConfig) -> str:
    return f"{engine.model} ({'engines' if engine.servers is None else ', '.join(engine.servers.urls)})"


class _Progress:
    """Prints periodically how many problems are finished, and how many of these are not refused."""

    def __init__(self, total: int) -> None:
        self._total, self._finished, self._kept, self._printed = total, 0, 0, time.monotonic()

    def restart(self) -> None:
        """Count again from 0, for the second stage."""
        self._finished = self._kept = 0

    def add(self, found: BridgedProblem) -> None:
        """Count a finished problem."""
        self._finished += 1
        self._kept += found.reason == KEPT_REASON
        if time.monotonic() - self._printed > PROGRESS_SECONDS:
            print(f"{self._finished:,} of {self._total:,} problems, {self._kept:,} not refused", file=sys.stderr)
            self._printed = time.monotonic()
