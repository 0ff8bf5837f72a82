"""Test recent model types as process reward models: experts, recurrent layers, and settings that are rejected early."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprm.backbone.freeze import PARTS
from mmprm.backbone.masks import why_not_packed
from mmprm.backbone.trainable import TrainableConfig, prepare_training
from mmprm.config import build
from mmprm.errors import ConfigError
from mmprm.model_limits import LIMITS, check_packing
from mmprm.planning.shapes import shape_of
from mmprm.prm import train
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import Prm, initialize_prm, load_prm, save_prm
from mmprm.prm.train import TrainConfig
from mmprm.prompts import PromptConfig
from mmprm.sampling import vllm_sampler
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.dtype import Device
from mmprm.training.lora import LoraConfig
from policy_rl.rollouts import engine as rollout_engine
from policy_rl.sft import train as sft
from tests.backbones import RECENT, tiny_solutions, write_backbone
from tests.mmprm.backbone.test_backbones import loss_of
from tests.mmprm.prm.test_tree_packing import assert_equal_training, packed, tree_samples

HYBRID = ("qwen3_5", "qwen3_5_moe")
PACKABLE = tuple(name for name in RECENT if name not in HYBRID)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_backbone(name, tmp_path_factory.mktemp(name) / "base") for name in RECENT}


def prm_of(folders: dict[str, Path], name: str) -> Prm:
    return initialize_prm(str(folders[name]), PrmTokens())


@torch.no_grad()
@pytest.mark.parametrize("name", RECENT)
def test_padding_changes_no_score_and_saving_keeps_them(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Rows are padded on the right, so recurrent layers see the padding last."""
    prm, solutions = prm_of(folders, name), tiny_solutions(name, 3)
    assert len({len(solution.steps) for solution in solutions}) > 1
    prm.model.eval()
    together_M2 = prm.model(**prm.renderer.encode(solutions))
    alone_M2 = torch.cat([prm.model(**prm.renderer.encode([solution])) for solution in solutions])
    assert together_M2.std() > 0.01
    torch.testing.assert_close(together_M2, alone_M2, rtol=1e-4, atol=1e-5)
    save_prm(tmp_path / "prm", prm)
    loaded = load_prm(tmp_path / "prm")
    torch.testing.assert_close(loaded.model(**loaded.renderer.encode(solutions)), together_M2)


@pytest.mark.parametrize("name", PACKABLE)
def test_trees_equal_separate_paths(folders: dict[str, Path], name: str) -> None:
    prm = prm_of(folders, name)
    prm.model.train()
    samples = tree_samples(prm, "everywhere", problems=2)
    rows = packed(prm, samples, max_tokens=10_000, width=None)
    assert sum(rows.lengths) < 0.6 * sum(sample.length for sample in samples)
    assert_equal_training(prm, samples, rows, budget=10_000)


@pytest.mark.parametrize("name", RECENT)
def test_a_step_of_training_lowers_the_loss(folders: dict[str, Path], name: str) -> None:
    prm, solutions = prm_of(folders, name), tiny_solutions(name, 2)
    prm.model.train()
    optimizer = torch.optim.SGD(prm.model.parameters(), lr=0.0005)
    first = loss_of(prm, solutions)
    first.backward()
    moved = {key for key, p in prm.model.backbone.named_parameters() if p.grad is not None and p.grad.any()}
    optimizer.step()
    assert loss_of(prm, solutions).item() < first.item()
    for part in (".mlp.experts.gate_up_proj", ".mlp.gate.", ".linear_attn.A_log", ".linear_attn.conv1d."):
        own = {key for key, _ in prm.model.backbone.named_parameters() if part in key}
        assert own <= moved, part


@pytest.mark.parametrize("name", RECENT)
def test_each_parameter_belongs_to_one_part(folders: dict[str, Path], name: str) -> None:
    names = [key for key, _ in prm_of(folders, name).model.backbone.named_parameters()]
    counts = {key: sum(bool(re.search(pattern, key)) for pattern in PARTS.values()) for key in names}
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_5_moe"])
def test_adapters_leave_experts_and_router_alone(folders: dict[str, Path], name: str) -> None:
    backbone = prm_of(folders, name).model.backbone
    prepare_training(backbone, TrainableConfig(lora=LoraConfig(rank=2)))
    trained = [key for key, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert any("self_attn.q_proj" in key for key in trained)
    assert not any(".experts." in key or ".mlp.gate." in key for key in trained)


@pytest.mark.parametrize("sharded", [False, True])
def test_experts_of_qwen3_vl_are_stored_transposed(
    folders: dict[str, Path], sharded: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers transposes them only if the model's tensors are empty, as under ZeRO-3."""
    prm = prm_of(folders, "qwen3_vl_moe")
    weights = {key: tensor.clone() for key, tensor in prm.model.backbone.state_dict().items()}
    if sharded:
        for parameter in prm.model.backbone.parameters():
            parameter.data = torch.empty(0)
    save_prm(tmp_path / "prm", prm, weights)
    stored = load_file(tmp_path / "prm" / "model.safetensors")
    key = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert torch.equal(stored[key], weights[key].transpose(1, 2))
    assert stored.keys() == weights.keys()


@pytest.mark.parametrize("name", HYBRID)
def test_packing_is_rejected_before_weights_are_loaded(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both PRM training and SFT reject it; with packing=none, both proceed to read the data."""
    assert "recurrent" in why_not_packed(prm_of(folders, name).model.backbone)
    check_packing(str(folders[name]), "none")
    for module, config, packing in ((train, TrainConfig, "trees"), (sft, sft.SftConfig, "samples")):
        loaded = "initialize_prm" if module is train else "load_backbone"
        monkeypatch.setattr(module, loaded, lambda *_, **__: pytest.fail("weights are loaded"))
        monkeypatch.setattr(module, "read_parquet", lambda *_, **__: [], raising=False)
        values = {"model": str(folders[name]), "output": str(tmp_path / "run"), "packing": packing}
        values |= {"labels": "x"} if module is train else {"data": {"path": "x"}}
        rule = rf"packing={packing} must be none for a model of type {name}: .* recurrent.*; set packing=none"
        with pytest.raises(ConfigError, match=rule):
            (train.train_prm if module is train else sft.train_sft)(build(config, values, "test"))


@pytest.mark.parametrize("name", HYBRID)
def test_a_plan_is_rejected_with_a_suggestion(folders: dict[str, Path], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model={folders[name]}: must not be of type {name} .*hardware.shapes"):
        shape_of(str(folders[name]))


def test_limits_name_model_types_known_to_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert set(HYBRID) <= LIMITS.keys() <= set(CONFIG_MAPPING.keys())


@pytest.mark.parametrize("name", HYBRID)
def test_engines_on_cpu_are_refused(folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM rejects them too, but only after minutes and without a suggestion."""
    monkeypatch.setattr(vllm_sampler, "this_device", lambda: Device("CPU", bf16=True))
    monkeypatch.setattr(vllm_sampler, "start_engine", lambda *_: pytest.fail("an engine starts"))
    with pytest.raises(ConfigError, match=rf"must not be of type {name} on CPU, because .*; use a GPU, or name a serv"):
        vllm_sampler.VllmSampler(EngineConfig(model=str(folders[name])))


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_vl_moe"])
async def test_rl_of_experts_on_cpu_is_refused(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that reloads weights differs from the trainer by 0.03 nats, compared with 5e-7 before reloading."""
    monkeypatch.setattr(rollout_engine, "this_device", lambda: Device("CPU", bf16=True))
    with pytest.raises(ConfigError, match=rf"must not be of type {name} on CPU, because .*misreads.*; use a GPU"):
        await rollout_engine.RolloutEngine().start(
            EngineConfig(model=str(folders[name])), SamplingConfig(), PromptConfig(), {}
        )
