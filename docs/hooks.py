"""Generate one reference page per command for the documentation site, from its parser and configuration class.

mkdocs.yml names this file under `hooks`; `make docs` runs it.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from mmprm.cli.main import COMMANDS
from mmprm.config import Config, describe

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

FOLDER = "reference"
YAML_NAMES = {"None": "null", "True": "true", "False": "false", "()": "[]", "": '""'}
TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
PLURALS = {"number": "numbers", "group": "groups", "integer": "integers", "string": "strings", "path": "paths"}
BOUNDS = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}
CODE = re.compile(r"(`[^`]*`)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site. MkDocs calls this function."""
    from mkdocs.structure.files import File

    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def reference_pages() -> dict[str, str]:
    """Return the Markdown of each generated page, keyed by its path below docs/."""
    return {f"{FOLDER}/{name}.md": command_page(name) for name in COMMANDS}


def command_page(name: str) -> str:
    """Return the reference page of a command: description, arguments and keys of the command and its subcommands."""
    parser = command_parser(name)
    parts = [f"# mmprm {name}", *_parser_parts(parser)]
    first_with_keys: dict[type[Config], str] = {}
    for sub in _subparsers(parser):
        parts += [f"## {sub.prog}", *_parser_parts(sub, first_with_keys)]
    return "\n\n".join(parts) + "\n"


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the argument parser of a command, built as by `mmprm NAME`."""
    module = importlib.import_module(f"mmprm.cli.{name}")
    summary, _, rest = (module.__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog=f"mmprm {name}", description=summary, epilog=rest.strip())
    module.add_arguments(parser)
    return parser


def type_text(field: FieldInfo) -> str:
    """Format a key's type and bounds for readers, for example "integer ≥ 1 or null"."""
    return _with_metadata(_type_text(field.annotation), field.metadata)


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [sub for action in actions for sub in action.choices.values()]


def _parser_parts(
    parser: argparse.ArgumentParser, first_with_keys: dict[type[Config], str] | None = None
) -> Iterator[str]:
    """Yield the parts of a section. If a table of keys is already on the page, name the command that has it."""
    yield _escaped(parser.description or "")
    yield from map(_paragraph, _epilog(parser).split("\n\n"))
    if rows := [_argument_row(action) for action in parser._actions if _is_shown(action)]:
        yield "| argument | description |\n|---|---|\n" + "\n".join(rows)
    model = getattr(parser, "config_model", None)
    if model is None:
        return
    first = (first_with_keys if first_with_keys is not None else {}).setdefault(model, parser.prog)
    if first == parser.prog:
        yield from _key_tables(model)
    else:
        yield f"The keys are those of `{first}`."


def _epilog(parser: argparse.ArgumentParser) -> str:
    """Return the parser's epilog without the list of keys, which a table replaces."""
    return (parser.epilog or "").partition("keys:\n")[0].strip()


def _paragraph(text: str) -> str:
    """Convert a paragraph of help text to Markdown. Indented lines become a code block."""
    lines = text.split("\n")
    code = [line[2:] for line in lines if line.startswith("  ")]
    prose = _escaped(" ".join(line for line in lines if not line.startswith("  ")))
    if not code:
        return prose
    return "\n".join([prose, "", "```", *code, "```"])


def _is_shown(action: argparse.Action) -> bool:
    return not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _argument_row(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or _choices(action) or action.dest.upper()}"
    name = f"{action.option_strings[-1]}{value}" if action.option_strings else value.strip()
    return f"| `{name}` | {_escaped(action.help or '')} |"


def _choices(action: argparse.Action) -> str:
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""


def _key_tables(model: type[Config]) -> Iterator[str]:
    """Yield one table per group of keys, starting with the ungrouped keys."""
    rows = sorted(describe(model), key=lambda row: _group(model, row[0]) != "")
    for group, members in groupby(rows, key=lambda row: _group(model, row[0])):
        yield f"### `{group}`" if group else "### Keys"
        lines = ["| key | type | default | description |", "|---|---|---|---|"]
        lines += [_key_row(model, *row) for row in members]
        yield "\n".join(['<div class="keys" markdown>', "", *lines, "", "</div>"])


def _group(model: type[Config], key: str) -> str:
    """Return the top-level group that a key is in, or "" for a key outside any group."""
    name = key.partition(".")[0]
    return name if _nested(model.model_fields[name].annotation) else ""


def _key_row(model: type[Config], key: str, default: str, text: str) -> str:
    shown = "required" if default == "required" else f"`{YAML_NAMES.get(default, default)}`"
    return f"| `{key}` | {type_text(_field(model, key))} | {shown} | {_escaped(text)} |"


def _field(model: type[Config], key: str) -> FieldInfo:
    *groups, name = key.split(".")
    for group in groups:
        (model,) = _nested(model.model_fields[group].annotation)
    return model.model_fields[name]


def _nested(annotation: Any) -> list[type[Config]]:
    parts = (annotation, *get_args(annotation))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Config)]


def _type_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _with_metadata(_type_text(parts[0]), parts[1:])
    if origin is Literal:
        return ", ".join(f"`{YAML_NAMES.get(str(value), value)}`" for value in parts)
    if origin in (list, tuple):
        return f"list of {PLURALS.get(_type_text(parts[0]), _type_text(parts[0]))}"
    if origin is dict:
        return "mapping"
    if parts:  # a union: null comes last
        names = dict.fromkeys(_type_text(part) for part in parts)
        return " or ".join(sorted(names, key=lambda name: name == "null"))
    if _nested(annotation):
        return "group"
    return TYPE_NAMES.get(annotation, "any value")


def _with_metadata(text: str, metadata: Sequence[Any]) -> str:
    """Add the bounds to a type's name, and replace "string" with "path" if there is a validator."""
    if any(isinstance(item, AfterValidator) for item in metadata):
        text = re.sub(r"\bstring\b", "path", text)
    bounds = ", ".join(_bound(item) for item in metadata if type(item) in BOUNDS)
    return re.sub(r"\b(integer|number)\b", rf"\1 {bounds}", text) if bounds else text


def _bound(item: Any) -> str:
    name, sign = BOUNDS[type(item)]
    return f"{sign} {getattr(item, name)}"


def _escaped(text: str) -> str:
    """Escape characters that Markdown would interpret, except in code."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(part if part.startswith("`") else _escaped_prose(part) for part in parts)


def _escaped_prose(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return re.sub(r"([*_\[\]])", r"\\\1", escaped)
