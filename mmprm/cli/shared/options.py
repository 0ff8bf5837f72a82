"""Add `--config FILE` and `--set key=value` to the commands, and list their keys under --help."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from typing import TypeVar

from mmprm.config import Config, describe, load

_C = TypeVar("C", bound=Config)

WIDTH = 116
"""Maximum width of help text, in columns."""


def add_config_options(parser: argparse.ArgumentParser, model: type[Config], prefix: str = "") -> None:
    """Add --config and --set to the parser.

    `prefix` stores their values under other names than a subcommand's options, which would overwrite them.
    """
    config, sets = f"{prefix}config", f"{prefix}set"
    parser.add_argument("--config", dest=config, metavar="FILE", help="YAML file with the keys below")
    parser.add_argument(
        "--set", dest=sets, metavar="KEY=VALUE", action="append", default=[], help="override one key; repeatable"
    )
    parser.epilog = f"{parser.epilog or ''}\n\nkeys:\n{key_table(model)}".strip()
    parser.config_model = model  # read by docs/hooks.py for the command reference


def load_config(arguments: argparse.Namespace, model: type[_C], *overrides: str) -> _C:
    """Load a command's configuration from --config, `overrides` and --set.

    `overrides` come from the command's own arguments. They override the file, and --set overrides them.
    """
    return load(model, arguments.config, [*overrides, *arguments.set])


def columns() -> int | None:
    """Return the terminal width in columns, or None if the output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(text: str) -> str:
    """Wrap paragraphs to the terminal width, leaving indented examples unchanged."""
    width = min(columns() or WIDTH, WIDTH)
    parts = text.strip().split("\n\n")
    return "\n\n".join(part if "\n " in part else textwrap.fill(part, width) for part in parts)


def key_table(model: type[Config]) -> str:
    """Format a configuration's keys, defaults and descriptions for --help."""
    rows = describe(model)
    longest = max(len(f"{key} ({default})") for key, default, _ in rows)
    width = min(columns() or WIDTH, WIDTH)
    lines = []
    for key, default, text in rows:
        head = f"{key} ({default})".ljust(min(longest, 44))
        lines += textwrap.wrap(f"  {head}  {text}", width, subsequent_indent=" " * 8)
    return "\n".join(lines)
