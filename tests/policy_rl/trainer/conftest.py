"""Provide fixtures shared by the one-rank trainer tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from one_rank import make_samples

from policy_rl.types import TrainingSample


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def samples(random_policy_folder: Path) -> list[TrainingSample]:
    return make_samples(random_policy_folder)
