"""Test that every shipped configuration loads with its command's model."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mcts.config import CampaignConfig
from mmprm.cli.rerank import RerankConfig
from mmprm.cli.search import GuidedSearchConfig
from mmprm.config import load
from mmprm.prm.train import TrainConfig
from mmprm.sampling.config import SamplingConfig
from policy_rl.config import RLConfig
from policy_rl.sft.train import SftConfig
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


def test_the_filter_of_mm_eureka_8b_samples_as_its_training_does() -> None:
    """The command in the file's header must sample as training does; accuracy under another prompt would not
    transfer.
    """
    file = CONFIGS / "rl/mm-eureka-8b.yaml"
    head = file.read_text().partition("mmprm filter ")[2].partition("mmprm rl")[0]
    words = shlex.split(head.replace("\\\n#", " ").rstrip("# \n"))
    options = list(zip(words[::2], words[1::2], strict=True))
    sets = [value for name, value in options if name == "--set"]
    asked = load(CampaignConfig, CONFIGS.parent / dict(options)["--config"], sets)
    trained = load(RLConfig, file)
    assert asked.engine.model == trained.engine.model
    assert asked.sampling == SamplingConfig(**trained.sampling.model_dump())
    assert (asked.prompt, asked.grader) == (trained.prompt, trained.grader)
    assert dict(options)["--output"] == trained.problems.path
