"""Test `mmprm plan rl`: memory per phase, colocated and separate engines, and plans that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmprm.backbone.image_features import KEPT_FEATURE_BYTES
from mmprm.cli.main import main
from mmprm.cli.plan_rl import PROMPT_TOKENS, plan_rl, rl_settings, rl_shape
from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.planning.memory import output_layer
from mmprm.planning.parts import GIB, GpuGroup
from mmprm.planning.rl import ENCODED_PROMPT_BYTES, rl_plan
from mmprm.planning.trainer import TRAINING
from policy_rl.config import RLConfig
from policy_rl.trainer.prompt_encoder import KEPT_BYTES

CONFIGS = Path(__file__).parents[3] / "configs"
TRAINED, TOTAL = 7_615_616_512, 8_292_166_656
"""Parameters of Qwen2.5-VL-7B without and with its vision tower and projector."""
MATRIX = 152_064 * 3584
"""Elements of its output layer."""


def recipe(name: str, *sets: str) -> RLConfig:
    return load(RLConfig, CONFIGS / "rl" / f"{name}.yaml", sets)


def only_group(name: str, *sets: str) -> GpuGroup:
    (group,) = plan_rl(recipe(name, *sets)).groups
    return group


def test_a_colocated_run_by_hand() -> None:
    """MM-Eureka-7B on eight GPUs: ZeRO-3 states, with half of each GPU reserved for the engine."""
    group = only_group("mm-eureka-7b")
    assert (group.name, group.count) == ("8 GPUs, trainer and engine", 8)
    rollout = group.phases["rollout"]
    assert rollout["trainer: weights"] == 2 * TOTAL / 8
    assert rollout["trainer: gradients"] == 4 * TRAINED / 8
    assert rollout["trainer: optimizer states"] == 12 * TRAINED / 8
    assert rollout["engine: weights"] == 2 * TOTAL
    engine = sum(size for name, size in rollout.items() if name.startswith("engine"))
    assert engine == pytest.approx(0.5 * 79 * GIB)
    assert group.total("rollout") == pytest.approx(2 * TOTAL / 8 + 16 * TRAINED / 8 + 39.5 * GIB)


def test_an_engine_sleeps_during_the_update_and_wakes_without_its_cache() -> None:
    phases = only_group("mm-eureka-7b").phases
    assert [name for name in phases["update"] if name.startswith("engine")] == ["engine: asleep"]
    assert phases["log-probs"]["engine: asleep"] == phases["update"]["engine: asleep"]
    assert "engine: weights" in phases["sync"]
    assert "engine: key-value cache" not in phases["sync"]


def test_the_update_holds_the_output_layer_or_a_layer() -> None:
    update = only_group("mm-eureka-7b").phases["update"]
    tokens, hidden = 16384, 3584
    logits = output_layer(152_064, hidden, tokens, "bf16")
    assert logits == 2 * 4 * 2**26 + 2 * 4 * hidden * (tokens + 4096) + 2 * MATRIX
    assert update["trainer: largest layer, in work"] > logits
    assert "trainer: output layer, in work" not in update
    assert update["trainer: activations"] == tokens * (28 * 2 * hidden + 8 * hidden)


def test_adapters_have_no_gradient_of_the_output_layer() -> None:
    update = only_group("mm-eureka-7b", "trainer.lora.rank=16").phases["update"]
    assert "trainer: output layer, in work" not in update, "smaller than the largest layer"
    shape = rl_shape(recipe("mm-eureka-7b", "trainer.lora.rank=16"))
    assert shape.parts["embeddings"] == (0, 2 * MATRIX)
    assert update["trainer: gradients"] == 4 * shape.trained / 8


def test_buffers_of_the_sync() -> None:
    """The largest tensor is gathered and copied; ipc packs 1 GiB or that tensor, and nccl up to three buffers."""
    ipc = only_group("mm-eureka-7b").phases["sync"]
    assert ipc["trainer: send buffers"] == 3 * 2 * MATRIX, "of 1.09 GB, more than 1 GiB"
    small = only_group("lmm-r1-fre-multi").phases["sync"]
    assert small["trainer: send buffers"] == 2 * 151_936 * 2048 + GIB, "nothing to gather at stage 2"
    trainer, engine, _ = plan_rl(recipe("prm-rl")).groups
    largest = 2 * 151_674 * 3584
    assert trainer.phases["sync"]["trainer: send buffers"] == 2 * largest + 3 * (GIB + largest)
    assert engine.phases["sync"]["engine: receive buffers"] == 2 * (GIB + largest)


def test_the_reference_is_sharded_as_the_policy_is() -> None:
    kl = "trainer.loss.kl.coefficient=0.001"
    assert "trainer: reference model" not in only_group("mm-eureka-7b").phases["rollout"]
    phases = only_group("mm-eureka-7b", kl).phases
    assert all(parts["trainer: reference model"] == 2 * TOTAL / 8 for parts in phases.values())
    whole = only_group("mm-eureka-7b", kl, "trainer.optimization.zero_stage=2").phases
    assert whole["rollout"]["trainer: reference model"] == 2 * TOTAL
    adapters = only_group("mm-eureka-7b", kl, "trainer.lora.rank=16").phases
    assert "trainer: reference model" not in adapters["rollout"], "the policy without its adapters"


def test_an_offloaded_reference_is_in_the_memory_of_its_node() -> None:
    """The eight ranks of a node share it in bf16."""
    kl = "trainer.loss.kl.coefficient=0.001"
    kept = plan_rl(recipe("mm-eureka-7b", kl))
    moved = plan_rl(recipe("mm-eureka-7b", kl, "trainer.offload_reference=true"))
    assert "trainer: reference model" not in moved.groups[0].phases["log-probs"]
    assert moved.host[TRAINING] - kept.host[TRAINING] == 2 * TOTAL
    everything = plan_rl(recipe("mm-eureka-7b", kl, "trainer.optimization.offload=all"))
    assert "trainer: reference model" not in everything.groups[0].phases["log-probs"]


def test_caches_in_the_memory_of_a_node() -> None:
    """Each rank holds 1 GiB of prompts with pixels, and 2 GiB of features if vision and projector are frozen."""
    assert (KEPT_BYTES, KEPT_FEATURE_BYTES) == (ENCODED_PROMPT_BYTES, 2 * GIB)
    assert plan_rl(recipe("mm-eureka-7b")).host[TRAINING] == 8 * 3 * GIB
    assert plan_rl(recipe("mm-eureka-7b", "trainer.frozen=[vision]")).host[TRAINING] == 8 * 1 * GIB
    assert plan_rl(recipe("mm-eureka-zero-38b")).host[TRAINING] == 8 * 1 * GIB, "32 ranks on four nodes"


def test_a_teacher_is_sharded_and_offloaded_like_the_reference() -> None:
    """Qwen2.5-VL-32B teaches 7B: its parameters are sharded over 8 ranks in bfloat16, and the forward pass holds one of
    its layers.
    """
    sets = ("trainer.distillation.teacher=Qwen/Qwen2.5-VL-32B-Instruct",)
    taught, alone = plan_rl(recipe("mm-eureka-7b", *sets)), plan_rl(recipe("mm-eureka-7b"))
    size = 2 * rl_shape(recipe("mm-eureka-7b", "engine.model=Qwen/Qwen2.5-VL-32B-Instruct")).total
    phases = taught.groups[0].phases
    assert all(parts["trainer: teacher"] == size / 8 for parts in phases.values())
    layer = "trainer: largest layer, in work"
    assert phases["log-probs"][layer] > alone.groups[0].phases["log-probs"][layer]
    moved = plan_rl(recipe("mm-eureka-7b", *sets, "trainer.offload_reference=true"))
    assert "trainer: teacher" not in moved.groups[0].phases["update"]
    assert moved.host[TRAINING] - taught.host[TRAINING] == size


def test_only_a_sharded_reference_is_offloaded() -> None:
    with pytest.raises(ConfigError, match=r"offload_reference=true with optimization.zero_stage=2.*zero_stage=3"):
        recipe("mm-eureka-7b", "trainer.offload_reference=true", "trainer.optimization.zero_stage=2")


def group_with(*sets: str, **settings: bool) -> GpuGroup:
    """Return the GPUs of MM-Eureka-7B with overridden constants."""
    config = recipe("mm-eureka-7b", *sets)
    policy = rl_shape(config)
    (group,) = rl_plan(policy, None, replace(rl_settings(config, policy, PROMPT_TOKENS), **settings)).groups
    return group


def test_a_kept_cache_leaves_too_little_for_the_engine() -> None:
    """79 GiB must hold states of 16, an engine of 39.5, and the 17.5 that an update needs in addition."""
    freed, kept = group_with(), group_with(keeps_cache=True)
    working = freed.total("update") - freed.phases["update"]["engine: asleep"]
    assert kept.total("rollout") == pytest.approx(working + 39.5 * GIB)
    assert (freed.fits, kept.fits) == (True, False)


def test_engines_that_wake_in_one_step_hold_their_cache_during_sync() -> None:
    first, at_once = group_with(), group_with(wakes_at_once=True)
    cache = at_once.phases["sync"]["engine: key-value cache"]
    assert at_once.total("sync") - first.total("sync") == pytest.approx(cache)
    assert cache == first.phases["rollout"]["engine: key-value cache"]


def test_a_reference_that_is_not_sharded_is_whole_on_every_rank() -> None:
    kl = "trainer.loss.kl.coefficient=0.001"
    sharded, whole = group_with(kl), group_with(kl, shards_reference=False)
    assert whole.total("update") - sharded.total("update") == pytest.approx(2 * TOTAL * 7 / 8)


def test_log_probs_are_computed_first_only_where_they_are_needed() -> None:
    assert "trainer: buffers" in only_group("mm-eureka-7b").phases["log-probs"], "eight updates"
    once = only_group("mm-eureka-7b", "batch.updates=1").phases["log-probs"]
    assert not {name for name in once if name not in ("engine: asleep",)} - {
        "trainer: weights",
        "trainer: gradients",
        "trainer: optimizer states",
    }


def test_every_gpu_lists_its_processes() -> None:
    groups = plan_rl(recipe("prm-rl")).groups
    assert [group.name for group in groups] == ["4 GPUs, trainer", "3 GPUs, engine", "1 GPU, scorer"]
    shared = plan_rl(recipe("prm-rl", "process.own_gpu=false", "engine.gpu_memory_utilization=0.6")).groups
    assert [group.name for group in shared] == ["4 GPUs, trainer", "2 GPUs, engine", "1 GPU, engine and scorer"]
    scorer = groups[2].phases["rollout"]
    assert scorer["scorer: weights"] == 2 * 7_944_373_760, "bfloat16, whole"


def test_the_cache_of_an_engine_holds_one_sequence() -> None:
    plan = plan_rl(recipe("mm-eureka-7b", "engine.gpu_memory_utilization=0.25"))
    assert plan.shortfalls() == [
        "the key-value cache of an engine needs 6.8 GiB for one sequence of 128,000 tokens, but gets 1.3 GiB"
    ]
    short = ["engine.gpu_memory_utilization=0.25", "engine.max_model_len=8192"]
    assert plan_rl(recipe("mm-eureka-7b", *short)).fits


def test_heads_must_divide(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "rl", "--config", str(CONFIGS / "rl" / "mm-eureka-7b.yaml")]
    assert main([*command, "--set", "engine.tensor_parallel_size=8"]) == 2
    error = capsys.readouterr().err
    assert "engine.tensor_parallel_size=8 must divide the 28 attention heads" in error
    assert error.endswith("what would fit: --set engine.tensor_parallel_size=1\n")


def test_a_run_without_enough_gpus_says_so() -> None:
    with pytest.raises(ConfigError, match=r"hardware\.gpus=4: no GPUs are left.*trainer\.ranks=8"):
        plan_rl(recipe("mm-eureka-7b", "hardware.gpus=4"))


def test_a_model_that_is_not_written_yet_needs_a_published_shape(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "rl", "--config", str(CONFIGS / "rl" / "prm-rl.yaml")]
    assert main([*command, "--set", "hardware.shapes={}"]) == 2
    error = capsys.readouterr().err
    assert "process.scorer.prm=runs/internvl3-8b/train/prm: config.json not found" in error
    assert "--set 'hardware.shapes={runs/internvl3-8b/train/prm: Qwen2.5-VL-7B-Instruct}'" in error
    assert main([*command, "--set", "hardware.shapes={runs/internvl3-8b/train/prm: Qwen2.5-VL-7B-Instruct}"]) == 0


def test_a_plan_that_does_not_fit_proposes_one_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "rl", "--config", str(CONFIGS / "rl" / "mm-eureka-7b.yaml")]
    greedy = ["--set", "engine.gpu_memory_utilization=0.9"]
    assert main([*command, *greedy]) == 2
    error = capsys.readouterr().err
    assert "8 GPUs, trainer and engine:" in error
    assert "in the phase rollout do not fit into 72.7 usable GiB" in error
    assert "--set engine.gpu_memory_utilization=0.7;" in error
    assert main([*command, "--set", "engine.gpu_memory_utilization=0.7"]) == 0


def test_a_larger_model_is_given_a_number_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "rl", "--config", str(CONFIGS / "rl" / "mm-eureka-7b.yaml")]
    big = ["--set", "engine.model=Qwen/Qwen2.5-VL-72B-Instruct", "--set", "engine.tensor_parallel_size=8"]
    assert main([*command, *big]) == 2
    found = capsys.readouterr().err.rpartition("what would fit: ")[2].split("; ")[0].partition(" (needs")[0].split()
    assert found, "a suggestion"
    assert main([*command, *big, *found]) == 0


def test_experts_are_planned_by_total_and_active_parameters() -> None:
    config = recipe("mm-eureka-7b", "engine.model=Qwen/Qwen3-VL-30B-A3B-Instruct", "trainer.frozen=[vision]")
    shape = rl_shape(config)
    assert (round(shape.total / 1e9, 1), round(shape.active / 1e9, 1)) == (31.1, 3.9)
    group = plan_rl(config).groups[0]
    assert group.phases["rollout"]["engine: weights"] == 2 * shape.total, "every expert is held"
