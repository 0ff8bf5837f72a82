"""Memory and time of a training run on paper: published figures, tensors that torch really keeps, shipped recipes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from mmprm.cli.main import main
from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.planning.memory import (
    Layers,
    activations,
    attention_operations,
    buffers,
    forward_only,
    gpu_hours,
    matrix_operations,
    saved_by_a_layer,
    states,
)
from mmprm.planning.plan import memory_of, run_of, ways_to_fit
from mmprm.planning.shapes import shape_of
from mmprm.prm.train import TrainConfig

RECIPES = sorted(
    path for path in (Path(__file__).parents[3] / "configs" / "train").glob("*.yaml") if "tiny" not in path.name
)
OFFLOAD = ["training.offload=optimizer"]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_figures_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 GPUs, K = 12; its gradients take two bytes."""
    held = states(7_500_000_000, 0, 64, stage, "bf16", "none")
    assert (held.on_gpu - held.gradients / 2) / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert held.host == 0


def test_states_by_hand() -> None:
    """100 trained and 20 frozen parameters on 4 GPUs."""
    held = states(100, 20, 4, 3, "bf16", "none")
    assert (held.weights, held.gradients, held.optimizer) == (60, 100, 300)
    held = states(100, 20, 4, 2, "bf16", "none")
    assert (held.weights, held.gradients, held.optimizer) == (240, 100, 300)
    held = states(100, 20, 4, 1, "bf16", "none")
    assert (held.weights, held.gradients, held.optimizer) == (240, 400, 300)
    held = states(100, 20, 1, 0, "fp32", "none")
    assert (held.weights, held.gradients, held.optimizer) == (480, 400, 800)
    held = states(100, 20, 4, 2, "bf16", "optimizer")  # on the CPU: states 300, a copy of the gradients 100
    assert (held.weights, held.gradients, held.optimizer, held.host) == (240, 100, 0, 400)
    held = states(100, 20, 4, 3, "bf16", "all")  # and the gradients 100, weights 60
    assert (held.on_gpu, held.host) == (0, 560)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(64, 160, 4, 2), (96, 160, 4, 4), (64, 320, 2, 2)])
def test_torch_keeps_what_the_formula_says(shape: tuple[int, int, int, int], precision: str) -> None:
    """Bytes that autograd saves for one more layer of a Qwen2, parameters apart, with and without checkpointing."""
    hidden, intermediate, heads, groups = shape
    rows, length = 2, 64

    def saved(layers: int, checkpointing: bool) -> int:
        config = Qwen2Config(
            vocab_size=8,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
        )
        model = Qwen2Model(config).to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in own:
                kept[place] = tensor  # kept alive, so that no place is used again
            return tensor

        mask = torch.ones(rows, length, dtype=torch.long)
        mask[0, length // 2 :] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=torch.zeros(rows, length, dtype=torch.long), attention_mask=mask, use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    layers = Layers(1, hidden, hidden, intermediate, heads, True)
    tokens = rows * length
    assert saved(3, False) - saved(2, False) == tokens * saved_by_a_layer(layers, length, precision)
    width = 2 if precision == "bf16" else 4
    assert saved(3, True) - saved(2, True) == tokens * width * hidden


def test_working_memory_by_hand() -> None:
    """H = A = 4, I = 8, 2 heads, 3 layers, sequences of 16 tokens, bf16: a layer keeps 64 + 8 + 32 + 64 + 8 + 32."""
    layers = Layers(3, 4, 4, 8, 2, True)
    assert saved_by_a_layer(layers, 16, "bf16") == 208
    around = 3 * 2 * 8 + 8 * 4
    assert activations(layers, 10, 16, "bf16", checkpointing=False) == 10 * (3 * 208 + around)
    assert activations(layers, 10, 16, "bf16", checkpointing=True) == 10 * (3 * 2 * 4 + 208 + around)
    assert forward_only(layers, 10, "bf16") == 10 * (2 * (8 + 24) + 16)
    assert forward_only(Layers(3, 4, 4, 8, 2, False), 10, "bf16") == 10 * (2 * (8 + 16) + 16)
    billion = 10**9
    assert buffers(4 * billion, 0, billion, 2, 1, "bf16", "none") == (4e9, 0)
    assert buffers(4 * billion, 0, billion, 2, 2, "bf16", "none") == (8e9, 0)
    assert buffers(4 * billion, 0, billion, 2, 2, "fp32", "none") == (16e9, 8e9)
    assert buffers(4 * billion, 0, billion, 2, 3, "bf16", "none") == (8e9, 4e9)
    assert buffers(4 * billion, 0, billion, 2, 3, "bf16", "optimizer") == (8e9, 0)
    assert buffers(100, 0, 10, 1, 0, "fp32", "none") == (4 * 210, 0)


def test_operations_of_published_runs() -> None:
    """GPT-3: 175 billion parameters, 300 billion tokens, 3.14e23 operations (Brown et al. 2020, table D.1)."""
    assert matrix_operations(174_600_000_000, 300e9, passes=3) == pytest.approx(3.14e23, rel=2e-3)
    assert attention_operations(Layers(2, 8, 8, 1, 1, True), [(3, 10.0)], causal=False, passes=3) == 4 * 2 * 8 * 300 * 3
    assert attention_operations(Layers(2, 8, 8, 1, 1, True), [(3, 10.0)], causal=True, passes=1) == 2 * 2 * 8 * 300
    assert gpu_hours(3600e12, peak=1000e12, utilisation=0.5) == pytest.approx(0.002)


def recipe(name: str, *sets: str) -> TrainConfig:
    return load(TrainConfig, next(path for path in RECIPES if path.stem == name), sets)


def test_the_shipped_shapes_have_the_published_sizes() -> None:
    """Parameters as the model pages count them."""
    sizes = {
        "internvl3-8b": 7_944_373_760,
        "internvl3-38b": 38_388_164_992,
        "internvl2.5-78b": 78_408_318_336,
        "mm-prm-8b": 8_075_365_376,
        "qwen2.5-vl-7b": 8_292_166_656,
        "qwen2.5-vl-72b": 73_410_777_344,
    }
    assert sizes.keys() == {path.stem for path in RECIPES}
    for name, size in sizes.items():
        shape = shape_of(recipe(name))
        assert shape.trained + shape.frozen == size, name
        assert shape.parts["vision"][0] == 0, "the tower is frozen"
        assert shape.parts["projector"][1] == shape.parts["language"][1] == shape.parts["embeddings"][1] == 0


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_fits_on_its_gpus_and_not_on_half(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    gpus, gib = map(int, re.search(r"Fits from (\d+) GPUs of (\d+) GB", text).groups())
    per_node, nodes = re.search(r"--nproc_per_node (\d+)", text), re.search(r"--nnodes (\d+)", text)
    assert int(per_node[1]) * (int(nodes[1]) if nodes else 1) >= gpus
    config = load(TrainConfig, file)
    shape = shape_of(config)
    assert memory_of(shape, config, gpus, gib).fits
    assert not memory_of(shape, config, gpus // 2, gib).fits
    assert memory_of(shape, load(TrainConfig, file, OFFLOAD), 8, gib).fits, (
        "one node will do with the update on the CPU"
    )


def test_the_recipe_of_mm_prm() -> None:
    """The rate and the epochs of its paper, but for the file that has those of its released script."""
    for file in RECIPES:
        config = load(TrainConfig, file)
        training = config.training
        rate, epochs = (2e-6, 3) if file.stem == "mm-prm-8b" else (4e-6, 1)
        assert (training.learning_rate, training.batch_size, training.epochs) == (rate, 512, epochs)
        assert (training.warmup, training.weight_decay, config.target.kind) == (0.03, 0.05, "soft")
        assert training.betas == (0.9, 0.999)
        assert config.frozen == ("vision",)


def test_what_would_fit_does() -> None:
    config = recipe("internvl3-38b")
    ways = ways_to_fit(config, 8, 80)
    assert ways == ["--set training.offload=optimizer", "--set training.offload=all", "--set lora.rank=16", "--gpus 16"]
    for way in ways[:3]:
        other = recipe("internvl3-38b", way.removeprefix("--set "))
        assert memory_of(shape_of(other), other, 8, 80).fits
    # On one GPU of 40 GiB nothing alone will do; the first changes that do together are named by their last values.
    small = recipe("qwen2.5-vl-72b", "training.zero_stage=0", "training.micro_batch_tokens=16384")
    assert ways_to_fit(small, 1, 40) == [
        "--set training.zero_stage=3 --set training.micro_batch_tokens=8192 --set training.offload=all"
    ]
    assert ways_to_fit(small, 1, 8) == []


def test_adapters_need_no_states_for_what_they_leave() -> None:
    config = recipe("qwen2.5-vl-7b", "lora.rank=16")
    shape = shape_of(config)
    whole = shape_of(recipe("qwen2.5-vl-7b"))
    # Each of the 28 layers: rank 16 on q, k, v, o (3584 → 3584, 512, 512, 3584) and on gate, up, down (18944).
    adapters = 28 * 16 * ((3584 + 3584) * 2 + (3584 + 512) * 2 + (3584 + 18944) * 3)
    assert shape.parts["language"][0] == adapters
    assert shape.frozen == whole.trained + whole.frozen
    assert memory_of(shape, config, 8, 80).states.optimizer < memory_of(whole, config, 8, 80).states.optimizer / 50


def test_a_run_by_hand() -> None:
    """1,000 paths of 2,048 tokens: two steps; 64 GPUs take 512 · 2,048 tokens in one micro-batch of 16,384 each."""
    config = recipe("qwen2.5-vl-7b")
    shape = shape_of(config)
    run = run_of(shape, config, 64, 1000, 2048, peak=1e15, utilisation=0.5)
    assert (run.steps, run.tokens_a_step, run.micro_batches) == (2, 512 * 2048, 1)
    assert run_of(shape, config, 8, 1000, 2048, 1e15, 0.5).micro_batches == 8
    tokens = 1000 * 2048
    least = 8 * sum(shape.parts["language"]) * tokens + 2 * sum(shape.parts["vision"]) * 4 * tokens
    assert least < run.operations < 1.1 * least
    assert run.hours == pytest.approx(run.operations / 0.5e15 / 3600)


def test_the_command_refuses_what_cannot_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(next(path for path in RECIPES if path.stem == "internvl3-8b"))
    command = ["plan", "train", "--config", config, "--gpu-memory", "80"]
    assert main([*command, "--gpus", "8", "--paths", "200000"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"total +7,640,361,472 +304,012,288", shown)
    assert re.search(r"steps +391", shown)
    assert re.search(r"tokens per step +1,048,576", shown)
    assert main([*command, "--gpus", "8", "--path-tokens", "1000"]) == 0
    assert "512,000 tokens a step: 512 paths of 1,000" in capsys.readouterr().out
    assert main([*command, "--gpus", "2"]) == 2
    error = capsys.readouterr().err
    assert "do not fit" in error
    assert "--set training.offload=optimizer" in error
    assert main([*command, "--set", "base=somewhere/else"]) == 2
    assert "config.json not found" in capsys.readouterr().err


def test_a_folder_with_only_config_json_can_be_planned(random_policy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((random_policy_folder / "config.json").read_text())
    shape = shape_of(TrainConfig(base=str(tmp_path), labels="", output="", frozen=("vision",)))
    settings = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert sum(shape.parts["embeddings"]) == 2 * settings["vocab_size"] * settings["hidden_size"]
    with pytest.raises(ConfigError, match="matches no parameter"):
        shape_of(TrainConfig(base=str(tmp_path), labels="", output="", frozen=("nothing",)))
