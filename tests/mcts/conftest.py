"""Provide what the tests of the search share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mcts.scripted_campaign import PROBLEMS, write_problems


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """The problems of a scripted campaign."""
    return write_problems(tmp_path, PROBLEMS)
