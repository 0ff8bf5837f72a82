"""`--config FILE --set key=value`, the same for every command, with the keys listed under --help."""

from __future__ import annotations

import argparse
import textwrap
from typing import TypeVar

from mmprm.config import Config, describe, load

C = TypeVar("C", bound=Config)


def add_config_options(parser: argparse.ArgumentParser, model: type[Config], prefix: str = "") -> None:
    """`prefix` keeps the values apart from those of a subcommand, which would overwrite them."""
    config, sets = f"{prefix}config", f"{prefix}set"
    parser.add_argument("--config", dest=config, metavar="FILE", help="YAML file with the keys below")
    parser.add_argument(
        "--set", dest=sets, metavar="KEY=VALUE", action="append", default=[], help="override one key; repeatable"
    )
    parser.epilog = f"{parser.epilog or ''}\n\nkeys:\n{key_table(model)}".strip()


def load_config(arguments: argparse.Namespace, model: type[C], *overrides: str) -> C:
    """Configuration of a command; `overrides` come from its own arguments and rank between file and --set."""
    return load(model, arguments.config, [*overrides, *arguments.set])


def key_table(model: type[Config]) -> str:
    rows = describe(model)
    width = max(len(f"{key} ({default})") for key, default, _ in rows)
    lines = []
    for key, default, text in rows:
        head = f"{key} ({default})".ljust(min(width, 44))
        lines += textwrap.wrap(f"  {head}  {text}", 116, subsequent_indent=" " * 8)
    return "\n".join(lines)
