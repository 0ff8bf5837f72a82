"""Test the import layers, read from the source: data flows one way, and Ray, vLLM and DeepSpeed are imported at the
edge.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mmprm", "mcts", "policy_rl")

LAYERS = [
    {
        "types",
        "errors",
        "metrics",
        "written",
        "files",
        "halving",
        "user_function",
        "signals",
        "orphans",
        "actors",
        "ray_address",
        "worker_logs",
        "terminal",
    },
    {
        "config",
        "hardware",
        "data",
        "steps",
        "step_regions",
        "prompts",
        "rendering",
        "problems",
        "http_response",
        "client",
        "hub_models",
        "weights",
        "model_limits",
        "trackers",
    },
    {"grading"},
    {"sampling", "preflight", "environments"},
    {"trees"},
    {"labels"},
    {"bridge"},
    {"training"},
    {"backbone"},
    {"prm"},
    {"scoring", "convert", "planning"},
    {"selection", "critiques"},
    {"evaluation"},
    {"report"},
    {"hub"},
    {"tiny"},
    {"cli", "api", "__main__"},
]
"""Rooms of mmprm from left to right: a room imports from its own layer and from those to its left."""

MCTS_MAY_USE = {
    "http_response",
    "terminal",
    "actors",
    "files",
    "signals",
    "orphans",
    "types",
    "errors",
    "metrics",
    "config",
    "data",
    "steps",
    "step_regions",
    "prompts",
    "rendering",
    "preflight",
    "problems",
    "client",
    "grading",
    "sampling",
    "environments",
    "trackers",
    "trees",
}
POLICY_RL_MAY_NOT_USE = {"tiny", "cli", "__main__"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer(name: str) -> int:
    for index, rooms in enumerate(LAYERS):
        if name in rooms:
            return index
    raise AssertionError(f"mmprm.{name} has no layer: add it to LAYERS")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    own = rest[0]
    for name in imported(path):
        other = name.split(".")[0]
        if package == "mmprm":
            if own in ("cli", "api", "__main__", "__init__"):
                continue
            assert other == "mmprm", f"mmprm.{own} imports {name}"
            if room(name):
                assert layer(room(name)) <= layer(own), f"mmprm.{own} imports {name}, a package to its right"
        elif other == "mmprm" and room(name):
            allowed = room(name) in MCTS_MAY_USE if package == "mcts" else room(name) not in POLICY_RL_MAY_NOT_USE
            assert allowed, f"{package} imports {name}"
        elif other != "mmprm":
            assert other == package, f"{package} imports {name}"


def edges() -> dict[str, set[str]]:
    """Map each package of mmprm to the packages it imports, at module level or inside functions."""
    graph: dict[str, set[str]] = {}
    for path in (ROOT / "mmprm").rglob("*.py"):
        own = path.relative_to(ROOT).with_suffix("").parts[1]
        graph.setdefault(own, set()).update(room(name) for name in imported(path) if room(name) not in ("", own))
    return graph


def test_siblings_are_acyclic() -> None:
    graph = edges()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"cycle: {' → '.join((*trail, node))}"
        for other in graph.get(node, ()):
            visit(other, (*trail, node))

    for node in graph:
        visit(node, ())


LIGHT = [
    "mmprm",
    "mmprm.types",
    "mmprm.errors",
    "mmprm.config",
    "mmprm.steps",
    "mmprm.problems",
    "mmprm.trees.store",
    "mmprm.planning.memory",
    "mmprm.scoring.http.remote",
    "mcts.value",
    "mcts.search",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = ("torch", "vllm", "ray", "deepspeed", "transformers")
    code = f"import {module}, sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()
    }


def imported_at_start(path: Path) -> Iterator[str]:
    """Return the modules imported on load, excluding imports inside functions and under TYPE_CHECKING."""
    known = modules()

    def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from statements(node.body)
            yield node

    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (name if name in known else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_import_circles() -> None:
    waiting = {name: {other for other in imported_at_start(path) if other != name} for name, path in modules().items()}
    while free := {name for name, others in waiting.items() if not others & waiting.keys()}:
        waiting = {name: others for name, others in waiting.items() if name not in free}
    assert not waiting, f"these modules import each other in a circle, or one that does: {sorted(waiting)}"
