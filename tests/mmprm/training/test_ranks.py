"""Test that joining a process group needs no compiler."""

from __future__ import annotations

import os
import subprocess
import sys


def test_training_on_cpu_compiles_no_operator(tmp_path):
    code = "from mmprm.training.ranks import join_ranks; print(join_ranks().count)"
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
    assert not list(tmp_path.iterdir())
