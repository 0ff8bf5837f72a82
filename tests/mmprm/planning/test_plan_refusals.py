"""Test what a plan rejects besides memory, following vLLM's rules, and the changes that it proposes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.cli.plan_rl import plan_rl, rl_shape
from mmprm.config import load
from mmprm.planning.engine import split_refusals, weights_per_gpu
from mmprm.planning.shapes import shape_of
from mmprm.sampling.arguments import batched_tokens
from policy_rl.config import RLConfig

CONFIGS = Path(__file__).parents[3] / "configs"
QWEN_7B, QWEN_72B = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"


def recipe(name: str, *sets: str) -> RLConfig:
    return load(RLConfig, CONFIGS / "rl" / f"{name}.yaml", sets)


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "split", "reason"),
    [
        (QWEN_7B, 4, None),
        (QWEN_7B, 3, "divide the 28 attention heads"),
        (QWEN_7B, 7, "divide the 18,944 hidden units of an MLP"),
        (QWEN_72B, 16, None),  # 8 key-value heads, each on two GPUs
        (QWEN_72B, 32, "divide the 16 attention heads of the vision tower"),
        ("OpenGVLab/InternVL3-38B-hf", 8, None),  # the 25 heads of its vision tower are not split
    ],
)
def test_a_model_is_split_as_vllm_can(model: str, split: int, reason: str | None) -> None:
    expected = [f"engine.tensor_parallel_size={split} must {reason}"] if reason else []
    assert split_refusals(shape_of(model), split, "engine") == expected


def test_a_scorer_is_split_like_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"scorer.prm={QWEN_72B}", "scorer.backend=vllm", "scorer.tensor_parallel_size=3"]
    error = error_of(capsys, "serve", *(word for key in keys for word in ("--set", key)))
    assert "scorer.tensor_parallel_size=3 must divide the 64 attention heads" in error


def test_the_attention_of_internvls_tower_is_replicated_on_every_gpu() -> None:
    """Its 45 layers have four matrices of 3200 × 3200 each."""
    shape = rl_shape(recipe("mm-eureka-zero-38b"))
    attention = 45 * 4 * 3200**2
    assert weights_per_gpu(shape, 4) == attention + (shape.total - attention) / 4
    assert weights_per_gpu(shape_of(QWEN_7B), 4) == shape_of(QWEN_7B).total / 4


def test_a_context_shorter_than_prompt_and_response_is_refused() -> None:
    config = recipe("mm-eureka-7b", "sampling.max_tokens=4096", "engine.max_model_len=4096")
    (refusal,) = plan_rl(config, prompt_tokens=2048).shortfalls()
    assert refusal.startswith("a prompt and a response have up to 6,144 tokens, but an engine's context is engine.max")


def test_a_step_of_an_engine_has_room_for_prompts() -> None:
    """vLLM's default of 2,048 tokens is less than 4,096 sequences of one token each."""
    assert (batched_tokens(256), batched_tokens(1024), batched_tokens(4096)) == (2048, 2048, 8192)


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["serve", "--set", f"scorer.prm={QWEN_7B}", "--set", "scorer.backend=vllm", "--set", "scorer.dtype=bfloat16",
          "--set", "scorer.tensor_parallel_size=16"], "--set scorer.tensor_parallel_size=1"),
        (["rl", "--config", str(CONFIGS / "rl/mm-eureka-7b.yaml"), "--set", "engine.kv_cache_gib=60"],
         "--set engine.kv_cache_gib=null"),
        (["rl", "--config", str(CONFIGS / "rl/mm-eureka-7b.yaml"), "--set", "hardware.gpu_memory_gib=39"],
         "--set hardware.gpu_memory_gib=139"),
        (["rl", "--config", str(CONFIGS / "rl/prm-rl.yaml"), "--set", "process.own_gpu=false", "--set",
          "process.scorer.backend=vllm", "--set", "process.scorer.gpu_memory_utilization=0.9"],
         "--set process.own_gpu=true"),
        (["train", "--config", str(CONFIGS / "train/internvl2.5-78b.yaml"), "--set", "hardware.host_memory_gib=100"],
         "use machines with at least 146 GiB of CPU memory"),
    ],
)  # fmt: skip
def test_proposed_changes(words: list[str], way: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert way in error_of(capsys, *words)


def test_offloading_names_the_memory_that_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", str(CONFIGS / "train/qwen2.5-vl-72b.yaml"), "--set", "hardware.gpus=8"]
    error = error_of(capsys, *words, "--set", "hardware.nodes=1")
    assert "--set training.offload=optimizer (needs 1,4" in error


def test_gpus_that_a_run_leaves_idle_are_mentioned() -> None:
    plan = plan_rl(recipe("mm-eureka-7b", "hardware.gpus=16", "hardware.nodes=2"))
    assert plan.notes[-1] == "8 of hardware.gpus=16 are not used; see trainer.ranks and rollouts.engines."
    assert "not used" not in "".join(plan_rl(recipe("mm-eureka-7b")).notes)


def test_a_judge_is_not_planned_with_other_models(capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", "scorer.backend=judge", "--set", "scorer.judge.engine.model=OpenGVLab/InternVL3-8B-hf"]
    assert main(["plan", "serve", *sets]) == 2
    assert "scorer.backend=judge: the memory of a judge is not planned with other models" in capsys.readouterr().err
    served = ["--set", "scorer.judge.engine.servers.urls=[http://localhost:1]"]
    assert main(["plan", "serve", *sets, *served]) == 2
    assert "servers run the models, so nothing runs on this machine" in capsys.readouterr().err
