"""Test loading checkpoints as models: trained weights come from the checkpoint, all others from the base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprm.backbone.load import load_backbone
from mmprm.cli.main import main
from mmprm.errors import CheckpointError, ConfigError
from mmprm.prm.info import PrmTokens, read_info
from mmprm.prm.model import initialize_prm
from mmprm.prm.trained import convert_checkpoint
from mmprm.tiny.model import weights_path
from mmprm.training import checkpoints
from mmprm.training.lora import LoraConfig, add_adapters

BASE = str(weights_path())
NAME = "model.language_model.layers.0.mlp.up_proj.weight"
RL = {"model": BASE, "prompt": {"preset": "plain", "system": None}, "optimization": {"precision": "fp32"}, "lora": None}
SFT = {"base": BASE, "prompt": {"preset": "plain"}, "conversations": "x", "precision": "fp32", "lora": None}


def write_checkpoint(folder: Path, weights: dict[str, Tensor], resume_key: dict[str, Any]) -> Path:
    """Write a checkpoint as DeepSpeed does up to ZeRO stage 2."""
    (folder / "deepspeed").mkdir(parents=True)
    torch.save({"module": weights}, folder / "deepspeed/mp_rank_00_model_states.pt")
    checkpoints._finish(folder, {"step": int(folder.name[-8:]), "identity": resume_key, "ranks": 1})
    return folder


def weights_of(folder: str | Path) -> dict[str, Tensor]:
    return load_backbone(str(folder), torch.float32)[0].state_dict()


def trained(change: float = 1.0) -> dict[str, Tensor]:
    """Return the built-in policy's state under a run's names, with one weight changed."""
    state = {f"backbone.{name}": tensor.clone() for name, tensor in weights_of(BASE).items()}
    state[f"backbone.{NAME}"] += change
    return state


@pytest.mark.parametrize("resume_key", [RL, SFT], ids=["rl", "sft"])
def test_a_policy_has_the_checkpoints_weights(tmp_path: Path, resume_key: dict[str, Any], capsys: Any) -> None:
    source = write_checkpoint(tmp_path / "checkpoints/step-00000002", trained(), resume_key)
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert "the policy after step 2" in capsys.readouterr().out
    before, after = weights_of(BASE), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {NAME}
    assert torch.equal(after[NAME], before[NAME] + 1)
    ends = json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"]
    _, processor = load_backbone(BASE, torch.float32)
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])


def test_frozen_weights_come_from_the_base(tmp_path: Path) -> None:
    only = {f"backbone.{NAME}": trained()[f"backbone.{NAME}"], "value_head.weight": torch.ones(1)}
    convert_checkpoint(write_checkpoint(tmp_path / "step-00000001", only, RL), tmp_path / "out")
    before, after = weights_of(BASE), weights_of(tmp_path / "out")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {NAME}


def test_adapters_are_merged(tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, alpha=4.0, targets=(r"layers\.0\.mlp\.up_proj$",))
    backbone, _ = load_backbone(BASE, torch.float32)
    add_adapters(backbone, lora, (), ())
    state = {f"backbone.{name}": tensor.detach() for name, tensor in backbone.state_dict().items() if "lora_" in name}
    a, b = (next(name for name in state if f"lora_{part}" in name) for part in "AB")
    state[b] = torch.ones_like(state[b])
    resume_key = RL | {"lora": lora.model_dump(mode="json")}
    convert_checkpoint(write_checkpoint(tmp_path / "step-00000001", state, resume_key), tmp_path / "out")
    before, after = weights_of(BASE), weights_of(tmp_path / "out")
    assert torch.allclose(after[NAME], before[NAME] + 2.0 * (state[b] @ state[a]))


def test_a_process_reward_model_comes_with_its_tokens(tmp_path: Path) -> None:
    prm = initialize_prm(BASE, PrmTokens(), add_missing_tokens=True)
    state = {name: tensor.detach().clone() for name, tensor in prm.model.state_dict().items()}
    state[f"backbone.{NAME}"] += 1
    resume_key = {"base": BASE, "tokens": PrmTokens().model_dump(), "add_missing_tokens": True, "precision": "fp32"}
    resume_key |= {"target": {"kind": "soft"}, "labels": "x", "lora": None}
    found = convert_checkpoint(write_checkpoint(tmp_path / "step-00000007", state, resume_key), tmp_path / "out")
    assert (found.kind, found.step) == ("process reward model", 7)
    assert read_info(tmp_path / "out").labels == {"kind": "soft"}
    after = weights_of(tmp_path / "out")
    assert torch.equal(after[NAME], state[f"backbone.{NAME}"])


def test_a_run_folder_means_its_newest_checkpoint_and_best_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(folder / f"step-{step:08d}", trained(step), RL)
        checkpoints.offer_best(folder, step, {1: 0.5, 2: 0.75, 3: 0.75}[step], higher=True)
    assert checkpoints.is_checkpoint(tmp_path / "run")
    assert convert_checkpoint(tmp_path / "run", tmp_path / "newest").step == 3
    assert convert_checkpoint(folder / "best", tmp_path / "best").step == 2
    checkpoints.offer_best(folder, 9, 1.0, higher=True)  # it was never completed
    assert (folder / "best").resolve().name == "step-00000002"


def test_checkpoints_of_other_models_are_rejected(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "step-00000001", {"backbone.other": torch.ones(1)}, RL)
    with pytest.raises(CheckpointError, match="does not match the base model of its run: unknown other"):
        convert_checkpoint(source, tmp_path / "out")
    gone = write_checkpoint(tmp_path / "step-00000002", trained(), RL | {"model": "no/where/to/be"})
    with pytest.raises(CheckpointError, match="cannot find the base model of its run: no/where/to/be: does not exist"):
        convert_checkpoint(gone, tmp_path / "out")
    (source / "deepspeed/mp_rank_00_model_states.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is incomplete; give another checkpoint"):
        convert_checkpoint(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="exists already"):
        convert_checkpoint(source, tmp_path)
