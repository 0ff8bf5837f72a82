"""Provide fixtures shared by the tests of the search."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mcts.scripted_campaign import PROBLEMS, write_problems


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Return the problems of a scripted campaign."""
    return write_problems(tmp_path, PROBLEMS)
