"""Test that joining a process group needs no compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OWN_GROUP = "import torch.distributed as d; d.init_process_group('gloo', store=d.HashStore(), rank=0, world_size=1); "
DEEPSPEED = "import deepspeed; deepspeed.init_distributed(dist_backend='gloo', auto_mpi_discovery=False); "


@pytest.mark.parametrize("before", ["", OWN_GROUP])
def test_training_on_cpu_compiles_no_operator(tmp_path, before):
    join = "from mmprm.training.ranks import join_ranks; count = join_ranks().count; "
    code = before + join + DEEPSPEED + "print(count)"
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
    assert not list(tmp_path.iterdir())
