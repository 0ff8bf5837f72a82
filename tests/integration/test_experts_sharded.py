"""Test experts under ZeRO-3: ranks that use different experts do not deadlock, and results do not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import experts_worker
import pytest
import torch

from mmprm.backbone.experts import save_backbone
from mmprm.backbone.load import load_backbone
from tests.backbones import write_backbone

pytestmark = pytest.mark.integration

MODELS = ("qwen3_moe", "qwen3_vl_moe")
"""The layer of the first is one of DeepSpeed's default leaf modules, that of the second is not."""
SECONDS = 500


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in MODELS:
        folder = made[name] = write_backbone(name, tmp_path_factory.mktemp(name))
        backbone, _ = load_backbone(str(folder), torch.float32)
        experts_worker.route_by_token(backbone)
        save_backbone(backbone, folder)
    return made


@pytest.fixture(scope="module")
def results(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return the results of both ranks for each model. A deadlocked rank would exceed the time limit."""
    file = tmp_path_factory.mktemp("results") / "rank-{rank}.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [experts_worker.__file__, str(file), *map(str, folders.values())]
    alone = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=alone)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ranks = [json.loads(Path(str(file).format(rank=rank)).read_text()) for rank in (0, 1)]
    return dict(zip(MODELS, map(list, zip(*ranks, strict=True)), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_each_rank_uses_different_experts(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert [rank["experts"] for rank in results[name]] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradient_norms_equal_those_of_one_process(
    results: dict[str, list[dict[str, Any]]], folders: dict[str, Path], name: str
) -> None:
    backbone, _ = load_backbone(str(folders[name]), torch.float32)
    model = experts_worker.LastToken(backbone)
    config = experts_worker.CONFIG
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=0)
    expected = []
    for rate in (config.learning_rate, config.learning_rate / 2):  # cosine schedule over two steps: 1, then ½
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = sum(model(token) for token in experts_worker.TOKENS)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        expected.append([loss.item(), norm.item()])
        optimizer.step()
    assert expected[1][0] < expected[0][0] - 0.005
    for rank in results[name]:
        for found, wanted in zip(rank["steps"], expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-3)
