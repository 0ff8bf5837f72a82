"""Test that each public name is defined in only one file, so that readers know what it refers to."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("mmprm", "mcts", "policy_rl")

SHARED = {"add_arguments", "run", "main", "logger", "T"}
"""Names that mean the same wherever they occur: the interface of a command, an entry point, a logger, a TypeVar."""


def public_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_a_public_name_is_defined_once() -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in public_names(ast.parse(path.read_text(encoding="utf-8"))) - SHARED:
                files[name].append(str(path.relative_to(ROOT)))
    twice = {name: where for name, where in sorted(files.items()) if len(where) > 1}
    assert not twice, f"rename them, add a leading underscore, or merge the definitions: {twice}"


def test_public_names_are_found() -> None:
    tree = ast.parse("A: int = 1\nB = _C = 2\ndef f(): ...\nasync def g(): ...\nclass D:\n    E = 1\nX.y = 3")
    assert public_names(tree) == {"A", "B", "f", "g", "D"}


def test_test_files_have_different_names() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == [], "pytest imports test files by their base name"
