"""Test `mmprm plan train` and `plan sft`: shipped recipes, adapters, cost, and proposed changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.cli.plan_sft import plan_sft
from mmprm.cli.plan_train import plan_train, train_changes, train_shape
from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.planning.cost import cost_of
from mmprm.planning.fitting import spelled, ways_to_fit
from mmprm.planning.parts import GIB
from mmprm.planning.shapes import shape_of
from mmprm.planning.trainer import SAVING, TRAINING
from mmprm.prm.train import TrainConfig
from policy_rl.sft.train import SftConfig

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(path for path in (CONFIGS / "train").glob("*.yaml") if "tiny" not in path.name)


def recipe(name: str, *sets: str) -> TrainConfig:
    return load(TrainConfig, CONFIGS / "train" / f"{name}.yaml", sets)


def sets_of(option: str) -> list[str]:
    """Return the overrides in an option string such as `--set a=1 --set b=2`."""
    return option.removeprefix("--set ").split(" --set ")


def ways(name: str, *sets: str) -> list[str]:
    def fits(change: dict) -> bool:
        try:
            return plan_train(recipe(name, *sets, *(f"{key}={value}" for key, value in change.items()))).fits
        except ConfigError:
            return False

    return list(map(spelled, ways_to_fit(fits, train_changes(recipe(name, *sets)))))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_fits_the_gpus_in_its_header_but_not_half_of_them(file: Path) -> None:
    head = " ".join(file.read_text(encoding="utf-8").replace("#", " ").split())
    least = int(re.search(r"Needs at least (\d+) GPUs of 80 GB", head)[1])
    config = load(TrainConfig, file)
    assert config.hardware.gpus >= least
    nodes = max(1, least // 8)

    def on(gpus: int, *sets: str) -> bool:
        hardware = [f"hardware.gpus={gpus}", f"hardware.nodes={nodes if gpus == least else 1}"]
        return plan_train(load(TrainConfig, file, [*hardware, *sets])).fits

    assert on(least)
    assert not on(least // 2)
    assert on(8, "training.offload=optimizer"), "one node does with the update on the CPU"


def test_proposed_changes_fit() -> None:
    one_node = ["hardware.gpus=8", "hardware.nodes=1"]
    found = ways("internvl3-38b", *one_node)
    assert found == [
        "--set training.offload=optimizer",
        "--set lora.rank=16",
        "--set hardware.gpus=16 --set hardware.nodes=2",
        "--set hardware.gpu_memory_gib=139",
    ]
    for way in found:
        assert plan_train(recipe("internvl3-38b", *one_node, *sets_of(way))).fits


def test_changes_are_combined_only_as_far_as_needed() -> None:
    sets = ["training.zero_stage=0", "training.micro_batch_tokens=16384", "hardware.gpus=1", "hardware.nodes=1"]
    (found,) = ways("qwen2.5-vl-72b", *sets, "hardware.gpu_memory_gib=40")
    assert found == ("--set training.micro_batch_tokens=8192 --set training.offload=all --set training.zero_stage=3")


def test_adapters_need_no_states_for_frozen_weights() -> None:
    config, whole = recipe("qwen2.5-vl-7b", "lora.rank=16"), recipe("qwen2.5-vl-7b")
    shape = train_shape(config)
    # Each of the 28 layers: rank 16 on q, k, v, o (3584 → 3584, 512, 512, 3584) and on gate, up, down (18944).
    adapters = 28 * 16 * ((3584 + 3584) * 2 + (3584 + 512) * 2 + (3584 + 18944) * 3)
    assert shape.parts["language"][0] == adapters
    assert shape.frozen == train_shape(whole).total
    held, all_held = (plan_train(each).groups[0].phases["update"]["optimizer states"] for each in (config, whole))
    assert held < all_held / 50


def test_a_run_by_hand() -> None:
    """1,000 paths of 2,048 tokens make two steps; 64 GPUs process 512 · 2,048 tokens in one micro-batch of
    16,384 each.
    """
    config = recipe("qwen2.5-vl-7b")
    shape = train_shape(config)
    run = cost_of(shape, config, 64, 1000, 2048, peak=1e15, utilization=0.5)
    assert (run.steps, run.tokens_per_step, run.micro_batches) == (2, 512 * 2048, 1)
    assert cost_of(shape, config, 8, 1000, 2048, 1e15, 0.5).micro_batches == 8
    tokens = 1000 * 2048
    least = 8 * sum(shape.parts["language"]) * tokens + 2 * sum(shape.parts["vision"]) * 4 * tokens
    assert least < run.operations < 1.1 * least
    assert run.hours == pytest.approx(run.operations / 0.5e15 / 3600)


def test_unused_experts_cost_no_operations() -> None:
    config = recipe("internvl3-8b", "model=Qwen/Qwen3-VL-30B-A3B-Instruct")
    shape = train_shape(config)
    assert shape.unused == 28_991_029_248 * 120 // 128, "8 of 128 experts compute a token"
    cost = cost_of(shape, config, 8, 1000, 2048, 1e15, 0.5)
    assert cost.operations < 8 * 4.5e9 * 1000 * 2048, "like a model of 4 billion parameters, not 31 billion"


@pytest.mark.parametrize(
    "name", ["internvl3-8b", "internvl3-38b", "qwen2.5-vl-7b", "qwen2.5-vl-72b", "internvl2.5-78b"]
)
def test_our_own_large_recipes_pack_trees(name: str) -> None:
    assert recipe(name).packing == "trees"


def test_fine_tuning_holds_logits_unless_a_layer_needs_more() -> None:
    config = load(SftConfig, CONFIGS / "sft" / "mm-policy-8b.yaml")
    parts = plan_sft(config).groups[0].phases["backward"]
    matrix, tokens, hidden = 92553 * 4096, 16384, 4096
    assert "output layer, in work" not in parts
    assert "output rows" not in parts
    config = load(SftConfig, CONFIGS / "sft" / "mm-policy-8b.yaml", ["gradient_checkpointing=false"])
    parts = plan_sft(config).groups[0].phases["backward"]
    # Two tensors of 2²⁶ logits; hidden states and 4,096 rows in float32 with gradients; and the matrix's gradient.
    logits = 2 * 4 * 2**26 + 2 * 4 * hidden * (tokens + 4096) + 2 * matrix
    assert parts["output layer, in work"] == logits


def test_a_frozen_tower_and_projector_have_a_cache_of_features() -> None:
    """Each of a node's eight ranks has 2 GiB; the recipe itself trains the projector."""
    assert plan_train(recipe("internvl3-8b")).host[TRAINING] == 0
    cached = plan_train(recipe("internvl3-8b", "frozen=[vision, projector]"))
    assert cached.host[TRAINING] == 8 * 2 * GIB
    assert cached.host[SAVING] - cached.host[TRAINING] == 2 * train_shape(recipe("internvl3-8b")).total
    adapters = plan_train(recipe("internvl3-8b", "lora.rank=16", "frozen=[]"))
    assert adapters.host[TRAINING] == 8 * 2 * GIB, "adapters are in the language model"


def test_experts_are_whole_on_each_rank_while_loading() -> None:
    """48 layers of 128 experts with 3 matrices of 2048 × 768 are 29 billion parameters, in bf16 on each of 8 ranks."""
    experts = 48 * 128 * 3 * 2048 * 768
    assert plan_train(recipe("qwen3-vl-30b-a3b")).host["loading"] == 8 * 2 * experts


def test_host_memory_of_saving_and_loading() -> None:
    plan = plan_train(recipe("internvl2.5-78b"))
    assert plan.host["saving the model, gathered on rank 0"] == 2 * 78_408_318_336, "157 GB"
    assert plan.host["loading"] == 0, "at stage 3 the files are mapped"
    sets = ["training.zero_stage=2", "hardware.gpus=32", "hardware.nodes=4"]
    assert plan_train(recipe("internvl2.5-78b", *sets)).host["loading"] == 8 * 2 * 78_408_318_336
    short = plan_train(recipe("internvl2.5-78b", "hardware.host_memory_gib=128"))
    assert short.shortfalls() == [
        "CPU memory: 146.0 GiB of a node for saving the model, gathered on rank 0 do not fit into "
        "hardware.host_memory_gib=128"
    ]


def test_the_command_rejects_plans_that_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "train", "--config", str(CONFIGS / "train" / "internvl3-8b.yaml")]
    assert main([*command, "--paths", "200000"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"total +7,640,361,472 +304,012,288", shown)
    assert re.search(r"steps +391", shown)
    assert re.search(r"tokens per step +1,048,576", shown)
    assert main([*command, "--path-tokens", "1000"]) == 0
    assert "512,000 tokens per step: 512 paths of 1,000" in capsys.readouterr().out
    assert main([*command, "--set", "hardware.gpus=2"]) == 2
    error = capsys.readouterr().err
    assert "2 GPUs, trainer:" in error
    assert "GiB in the phase backward do not fit into 72.7 usable GiB" in error
    assert "--set training.offload=optimizer" in error
    assert main([*command, "--set", "model=somewhere/else"]) == 2
    assert "model=somewhere/else: config.json not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--tflops", "nan"), ("--tflops", "inf"), ("--tflops", "0"), ("--paths", "0")]
)
def test_a_cost_needs_a_finite_positive_number(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "train", "--config", str(CONFIGS / "train" / "internvl3-8b.yaml"), "--paths", "1000"]
    assert main([*command, option, value]) == 2
    shown = "0.0" if option == "--tflops" and value == "0" else value
    assert f"{option}={shown} must be a number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "0", "1.5"])
def test_utilization_is_a_share(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "train", "--config", str(CONFIGS / "train" / "internvl3-8b.yaml"), "--mfu", value]) == 2
    assert "must lie in (0, 1]" in capsys.readouterr().err


def test_nodes_have_equally_many_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "train", "--config", str(CONFIGS / "train" / "internvl3-8b.yaml")]
    assert main([*command, "--set", "hardware.gpus=12", "--set", "hardware.nodes=8"]) == 2
    assert "gpus=12 must be a multiple of nodes=8" in capsys.readouterr().err


def test_a_folder_with_only_config_json_can_be_planned(random_policy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((random_policy_folder / "config.json").read_text())
    shape = shape_of(str(tmp_path), ("vision",))
    settings = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert sum(shape.parts["embeddings"]) == 2 * settings["vocab_size"] * settings["hidden_size"]
    with pytest.raises(ConfigError, match="matches no parameter"):
        shape_of(str(tmp_path), ("nothing",))


def test_the_recipe_of_mm_prm() -> None:
    """Learning rate and epochs are the paper's, except in the file that follows the released script."""
    for file in RECIPES:
        config = load(TrainConfig, file)
        training = config.training
        rate, epochs = (2e-6, 3) if file.stem == "mm-prm-8b" else (4e-6, 1)
        assert (training.learning_rate, training.batch_size, training.epochs) == (rate, 512, epochs)
        assert (training.warmup, training.weight_decay, config.target.kind) == (0.03, 0.05, "soft")
        assert training.betas == (0.9, 0.999)
        assert config.frozen == ("vision",)
