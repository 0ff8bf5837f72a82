"""Test that only plans read `hardware`: it is in no stored configuration and does not affect resuming."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcts.config import CampaignConfig
from mmprm.cli.serve import ServeConfig
from mmprm.config import Config, build, load
from mmprm.errors import ConfigError
from mmprm.hardware import HardwareConfig
from mmprm.prm.train import TrainConfig
from policy_rl.config import RLConfig
from policy_rl.sft.train import SftConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    CampaignConfig: CONFIGS / "annotate" / "internvl3-8b.yaml",
    RLConfig: CONFIGS / "rl" / "mm-eureka-7b.yaml",
    SftConfig: CONFIGS / "sft" / "mm-policy-8b.yaml",
    TrainConfig: CONFIGS / "train" / "internvl3-8b.yaml",
}


@pytest.mark.parametrize("model", FILES, ids=lambda model: model.__name__)
def test_a_run_on_other_gpus_has_the_same_configuration(model: type[Config]) -> None:
    eight, four = (load(model, FILES[model], [f"hardware.gpus={gpus}"]) for gpus in (8, 4))
    assert (eight.hardware.gpus, four.hardware.gpus) == (8, 4)
    assert eight.model_dump(mode="json") == four.model_dump(mode="json")
    assert "hardware" not in eight.model_dump()


def test_a_service_has_hardware_too() -> None:
    config = build(ServeConfig, {"scorer": {"prm": "prm"}, "hardware": {"gpu_memory_gib": 139}})
    assert config.hardware == HardwareConfig(gpus=8, nodes=1, gpu_memory_gib=139)


def test_nodes_have_equally_many_gpus() -> None:
    assert build(HardwareConfig, {"gpus": 16, "nodes": 2}).gpus == 16
    with pytest.raises(ConfigError, match=r"gpus=12 must be a multiple of nodes=8.*set gpus=16"):
        build(HardwareConfig, {"gpus": 12, "nodes": 8})
    with pytest.raises(ConfigError, match=r"gpus=2 must be a multiple of nodes=3.*set gpus=3"):
        build(HardwareConfig, {"gpus": 2, "nodes": 3})
