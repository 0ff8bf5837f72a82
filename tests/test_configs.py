"""Every shipped configuration loads with the model of its command."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcts.config import CampaignConfig
from mmprm.cli.rerank import RerankConfig
from mmprm.cli.search import GuidedSearchConfig
from mmprm.config import load
from mmprm.prm.train import TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
MODELS = {"annotate": CampaignConfig, "rerank": RerankConfig, "search": GuidedSearchConfig, "train": TrainConfig}
PROBLEMS = ["problems.path=problems.jsonl"]
REQUIRED = {"annotate": PROBLEMS, "rerank": PROBLEMS, "search": PROBLEMS, "train": []}


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONFIGS)))
def test_loads(file: Path) -> None:
    command = file.parent.name
    assert load(MODELS[command], file, REQUIRED[command])
