"""Test that the documentation names only existing commands, files, keys and defaults, and that the site lists each
page.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mmprm.cli.main import COMMANDS
from mmprm.cli.shared import options
from mmprm.config import Config, build, describe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGES = ("mcts", "mmprm", "policy_rl")
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
README_COMMAND = re.compile(r"\[`([a-z ]+)`\]\((docs/[a-z-]+\.md)\)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND_LINE = re.compile(r"^(?:\$ )?(?:torchrun .* -m )?mmprm (.+)$", re.MULTILINE)
KEY_TABLE = re.compile(r"^\| key of `mmprm (\w+)` \| default .*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
SHOWN_CONFIG = re.compile(r"^```yaml\n# mine/(\w+)\.yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
OWN_MESSAGES = re.compile(r"^\| message(?: or symptom)? \| cause .*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
API_MODULE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
KEY_ROW = re.compile(r"^\| `([\w.]+)` \| (.*?) \|", re.MULTILINE)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(message)


def parser_and_models(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Parser, list[type[Config]]]:
    """Return a command's parser and the configuration classes whose keys its --help lists."""
    models: list[type[Config]] = []

    def record(model: type[Config]) -> str:
        models.append(model)
        return ""

    monkeypatch.setattr(options, "key_table", record)
    parser = Parser(prog=command)
    importlib.import_module(f"mmprm.cli.{command}").add_arguments(parser)
    return parser, models


def keys_of(models: list[type[Config]]) -> dict[str, str]:
    """Return every key, including groups, with its default as --help shows it (empty for a group)."""
    defaults: dict[str, str] = {}
    for key, default, _ in (row for model in models for row in describe(model)):
        defaults.setdefault(key, default)
        for end in (match.start() for match in re.finditer(r"\.", key)):
            defaults.setdefault(key[:end], "")
    return defaults


def command_lines(page: Path) -> Iterator[str]:
    for block in CODE_BLOCK.findall(page.read_text(encoding="utf-8")):
        yield from COMMAND_LINE.findall(block.replace("\\\n", " "))


EXAMPLES = [(page.name, line) for page in PAGES for line in command_lines(page)]


def test_every_command_is_in_the_readme_and_has_a_page() -> None:
    listed = dict(README_COMMAND.findall(PAGES[0].read_text(encoding="utf-8")))
    assert sorted({*COMMANDS} - listed.keys()) == [], "commands that the README does not list"
    known = {*COMMANDS, "labels export", "labels import"}
    assert sorted(listed.keys() - known) == [], "the README lists unknown commands"
    for command, page in listed.items():
        assert f"mmprm {command}" in (ROOT / page).read_text(encoding="utf-8"), f"{page} does not name {command}"


def test_the_index_has_every_page() -> None:
    linked = LINK.findall((DOCS / "README.md").read_text(encoding="utf-8"))
    pages = {link for link in linked if link.endswith(".md")}
    assert {*pages, "README.md"} == {str(page.relative_to(DOCS)) for page in PAGES[1:]}


def nav_pages(entry: Any) -> Iterator[str]:
    """Yield the pages of a part of the navigation in mkdocs.yml."""
    if isinstance(entry, str):
        yield entry
        return
    for part in entry.values() if isinstance(entry, dict) else entry:
        yield from nav_pages(part)


def test_the_navigation_lists_every_page_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    written = [str(page.relative_to(DOCS)) for page in PAGES[1:]]
    assert sorted(nav_pages(site["nav"])) == sorted([*written, *(f"reference/{command}.md" for command in COMMANDS)])


def reference() -> ModuleType:
    """Import docs/hooks.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_of_a_command_has_every_key(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = reference().command_page(command)
    shown = re.findall(r"^\| `([\w.]+)` \| .+ \| .+ \| .+ \|$", page, re.MULTILINE)
    keys = {key for model in parser_and_models(command, monkeypatch)[1] for key, _, _ in describe(model)}
    assert {*shown} == keys


def test_the_reference_shows_type_default_and_description() -> None:
    page = reference().command_page("train")
    assert "| `training.batch_size` | integer ≥ 1 | `512` | Number of samples per optimizer step" in page
    assert "| `packing` | `none`, `samples`, `trees` | `none` |" in page
    assert "| `model` | path | required |" in page


def messages() -> str:
    """Return all string literals of the code, with … for f-string placeholders, and the Makefile."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for name in PACKAGES for file in (ROOT / name).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return "\n".join([*texts, (ROOT / "Makefile").read_text(encoding="utf-8")])


def test_troubleshooting_quotes_messages_as_they_are() -> None:
    """A table cell that is one quotation must match a message, except in tables of other packages' messages."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        quote for table in OWN_MESSAGES.findall(page) for quote in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    ]
    fragments = [part.strip(" ,:;'=") for quote in quoted for part in quote.split("…")]
    text = messages()
    assert len(fragments) > 25
    assert [part for part in fragments if len(part) > 8 and part not in text] == []


def test_the_modules_of_the_api_pages_exist() -> None:
    named = [name for page in PAGES for name in API_MODULE.findall(page.read_text(encoding="utf-8"))]
    assert "mmprm.types" in named
    files = [ROOT / name.replace(".", "/") for name in named]
    assert [file for file in files if not (file.with_suffix(".py").is_file() or (file / "__init__.py").is_file())] == []


def test_the_configurations_of_the_tutorial_load(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = SHOWN_CONFIG.findall((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    assert [name for name, _ in shown] == ["annotate", "rerank", "rl"]
    for command, text in shown:
        (model,) = parser_and_models(command, monkeypatch)[1]
        build(model, yaml.safe_load(text), source=f"mine/{command}.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize(("page", "line"), EXAMPLES, ids=lambda value: value[:60])
def test_examples_are_commands_with_keys_that_exist(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *words = shlex.split(line, comments=True)
    parser, models = parser_and_models(command, monkeypatch)
    arguments = parser.parse_args(words)
    unknown = {item.partition("=")[0] for item in getattr(arguments, "set", [])} - keys_of(models).keys()
    assert not unknown, f"{page}: {command} has no {unknown}"
    config = getattr(arguments, "config", None)
    assert config is None or not config.startswith("configs/") or (ROOT / config).is_file(), f"{page}: no {config}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_key_tables_have_the_real_defaults(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, rows in KEY_TABLE.findall(page.read_text(encoding="utf-8")):
        real = keys_of(parser_and_models(command, monkeypatch)[1])
        shown = dict(KEY_ROW.findall(rows))
        assert len(shown) == rows.count("\n"), "each row is a key with its default"
        spelled = {"None": "null", "True": "true", "False": "false"}
        assert shown == {key: spelled.get(real.get(key, ""), real.get(key, "")) for key in shown}


def test_the_table_of_training_has_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key counts as listed if its group, such as `lora`, is."""
    (_, rows), *_ = KEY_TABLE.findall((DOCS / "train.md").read_text(encoding="utf-8"))
    shown = dict(KEY_ROW.findall(rows)).keys()
    (model,) = parser_and_models("train", monkeypatch)[1]
    assert [key for key, _, _ in describe(model) if not {key, key.rpartition(".")[0]} & shown] == []


def test_the_examples_and_tables_are_found() -> None:
    """A pattern without matches would make the other tests pass trivially."""
    pages = {page for page, _ in EXAMPLES}
    assert {"README.md", "annotate.md", "train.md", "export.md"} <= pages
    tables = [command for page in PAGES for command, _ in KEY_TABLE.findall(page.read_text(encoding="utf-8"))]
    commands = "annotate annotate bridge demo grade labels rerank rl rl score serve sft tiny train"
    assert sorted(tables) == commands.split()
