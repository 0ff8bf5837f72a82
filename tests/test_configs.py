"""Every shipped configuration loads with the model of its command."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcts.config import CampaignConfig
from mmprm.cli.rerank import RerankConfig
from mmprm.cli.search import GuidedSearchConfig
from mmprm.config import load
from mmprm.prm.train import TrainConfig
from policy_rl.config import RLConfig
from policy_rl.sft import SftConfig
from policy_rl.stages import read_stages

CONFIGS = Path(__file__).parent.parent / "configs"
MODELS = {
    "annotate": CampaignConfig,
    "rerank": RerankConfig,
    "rl": RLConfig,
    "search": GuidedSearchConfig,
    "sft": SftConfig,
    "train": TrainConfig,
}
PROBLEMS = ["problems.path=problems.jsonl"]
REQUIRED = {"annotate": PROBLEMS, "rerank": PROBLEMS, "rl": [], "search": PROBLEMS, "sft": [], "train": []}


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_loads(file: Path) -> None:
    command = file.parent.name
    if command == "stages":
        assert len(read_stages(file)) > 1
        return
    assert load(MODELS[command], file, REQUIRED[command])
