"""Provide the results that several test files read from one launch of two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def two_rank_states(random_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of memory_worker, reference_worker and features_worker on two ranks."""
    folder = tmp_path_factory.mktemp("states")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = str(Path(__file__).with_name("states_worker.py"))
    # set by engines in this process
    alone = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    command = [*launcher, worker, str(random_policy_folder), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=alone)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder
