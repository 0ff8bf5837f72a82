"""Dispatch `mmprm COMMAND`, importing a command's module only when it is called. This is the composition root."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mmprm.cli.shared.options import fitted
from mmprm.errors import MmprmError
from mmprm.signals import SigtermAsInterrupt
from mmprm.terminal import plain_output, plain_text

COMMANDS = {
    "annotate": "label reasoning steps by tree search over rollouts",
    "status": "report the progress of a campaign: rates, outcomes, failures, remaining problems",
    "tree": "show the tree of one problem in the terminal",
    "view": "write an HTML page for browsing the trees of a run",
    "retry": "reopen failed problems of a run",
    "filter": "keep the problems that the policy solves only sometimes",
    "plan": "estimate the memory, time and cost of a run before it starts",
    "labels": "convert searched trees to labeled paths (Parquet), and export them",
    "consensus": "add a judge's opinion on every labeled step to the labels",
    "convert": "convert a checkpoint to another format",
    "push": "push a PRM, a policy or labels to the Hugging Face Hub, with a card",
    "bridge": "make cold-start data: describe images, and solve with a text-only reasoning model",
    "train": "train a process reward model from labeled paths",
    "sft": "train a policy on conversations or step-tagged solutions",
    "rl": "train a policy by reinforcement learning with outcome and process rewards",
    "stages": "run several trainings in sequence, each from the previous policy",
    "serve": "score steps over HTTP",
    "score": "score the steps of solutions",
    "rerank": "choose among sampled solutions and report accuracy",
    "search": "search for solutions step by step, guided by step scores",
    "eval": "evaluate a PRM (first errors, steps, best-of-N, labels) or a policy's accuracy",
    "grade": "compare responses with gold answers",
    "tiny": "write problems of the built-in toy world or Sokoban levels, or train its policy",
    "doctor": "report what this machine can run and what to install",
    "demo": "run the whole pipeline on the built-in toy world",
}

RESUMABLE = {"annotate", "bridge", "filter", "rerank", "train", "sft", "rl", "stages"}
"""Commands that resume an interrupted run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; expected errors are printed without a traceback."""
    ends_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name = argv[0]
    if name not in COMMANDS:
        print(f"mmprm: {name!r} is not a command; choose one of these\n\n{_usage()}", file=sys.stderr)
        return 2
    sigterm = SigtermAsInterrupt()
    try:
        with sigterm, plain_output():
            _run(name, argv[1:])
    except MmprmError as error:
        print(f"mmprm {name}: {plain_text(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        text = plain_text(str(error))
        print(f"mmprm {name}: {text}; check the disk and the path, then run it again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "; the same command resumes from what was saved" if name in RESUMABLE else ""
        print(f"mmprm {name}: stopped{kept}", file=sys.stderr)
        if ends_process:  # the exit must not be interrupted
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        return 143 if sigterm.came else 130
    return 0


def _run(name: str, argv: Sequence[str]) -> None:
    module = importlib.import_module(f"mmprm.cli.{name}")
    summary, _, rest = (module.__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog=f"mmprm {name}",
        description=fitted(summary),
        epilog=fitted(rest),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    module.run(_expanded(parser.parse_args(argv)))


def _expanded(arguments: argparse.Namespace) -> argparse.Namespace:
    """Expand a leading ~ in every argument, because shells do not expand it in `--output=~/x`."""
    for name, value in vars(arguments).items():
        values = value if isinstance(value, list) else [value]
        found = [_home(each) for each in values]
        setattr(arguments, name, found if isinstance(value, list) else found[0])
    return arguments


def _home(value: object) -> object:
    if isinstance(value, Path):
        return value.expanduser()
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: mmprm COMMAND …", "", *lines, "", "Run mmprm COMMAND --help for the keys of a command and examples."]
    )
