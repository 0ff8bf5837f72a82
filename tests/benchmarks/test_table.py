"""Test that docs/benchmarks.md shows the stored results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

TABLE = Path(__file__).parents[2] / "benchmarks" / "table.py"


def test_the_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("table", TABLE)
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run python benchmarks/table.py"
