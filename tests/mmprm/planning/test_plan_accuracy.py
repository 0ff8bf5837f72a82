"""Test plans against independent estimates: DeepSpeed's for the states, values by hand, and a measured run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmprm.planning.parts import GIB
from mmprm.planning.shapes import Shape, shape_of
from mmprm.planning.trainer import TrainerSettings, trainer_states, training_plan

TOLERANCE = 0.1
GATHERED_AND_BUCKET = 2 * (10**9 + 2 * 5 * 10**8) / GIB
"""What DeepSpeed's estimators leave out: 10⁹ parameters gathered in advance, and a bucket of 5·10⁸ gradients with its
reduced copy, two bytes each."""
MEASURED = json.loads(
    (Path(__file__).parents[3] / "benchmarks/results/gpu.json").read_text(encoding="utf-8"),
)["NVIDIA H200"]["update"]


@dataclass(frozen=True)
class ByHand:
    """Computes GiB per GPU in bf16 with checkpointing and a frozen vision tower, for T tokens of at most 8,192 each.

    kept     T · (2H · layers + 8H)
    layer    T · (16H + 8 + 8H + 8I + 4 · heads + 2 · 8,192 + 6I): norms, attention, feed-forward, sums, mask, gradients
    output   2VH, the gradient of a PRM's output layer; a policy's is smaller than `layer`
    vision   v tokens per token: v · T · (4 · Hv + 2 · max(4 Hv, 2 or 3 Iv) + 4 · Hv) + T · (6 · v · Hv + 4H)
    """

    model: str
    gpus: int
    tokens: int
    policy: bool
    kept: float
    layer: float
    output: float
    vision: float


TABLE = [
    ByHand("InternVL3-8B", 8, 16384, False, kept=3.5, layer=5.6, output=1.0, vision=2.1),
    ByHand("Qwen2.5-VL-32B-Instruct", 32, 16384, True, kept=10.6, layer=8.0, output=0.0, vision=2.7),
    ByHand("InternVL3-38B", 16, 16384, False, kept=10.6, layer=8.0, output=1.4, vision=6.2),
    ByHand("Qwen2.5-VL-72B-Instruct", 32, 8192, False, kept=10.5, layer=4.8, output=2.3, vision=1.4),
    ByHand("InternVL2_5-78B", 32, 8192, False, kept=10.5, layer=4.8, output=2.3, vision=3.2),
]
each_model = pytest.mark.parametrize("hand", TABLE, ids=lambda hand: hand.model)


def trainer_of(hand: ByHand, **changes: object) -> TrainerSettings:
    settings = {"ranks": hand.gpus, "stage": 3, "precision": "bf16", "offload": "none", "tokens": hand.tokens}
    settings |= {"longest": 8192, "checkpointing": True, "reads_logits": hand.policy}
    return TrainerSettings(**settings | changes)


def by_deepspeed(shape: Shape, gpus: int) -> float:
    """Return GiB per GPU at stage 3. DeepSpeed assumes 18 bytes per parameter; frozen weights need two of them."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate

    _, trained, _ = estimate(
        shape.trained,
        shape.largest,
        num_gpus_per_node=8,
        num_nodes=gpus // 8,
        cpu_offload=False,
        cpu_offload_params=False,
    )
    return (trained + 2 * shape.frozen / gpus) / GIB


@each_model
def test_a_plan_is_within_a_tenth_of_deepspeed_and_of_values_by_hand(hand: ByHand) -> None:
    shape = shape_of(hand.model, ("vision",))
    expected = by_deepspeed(shape, hand.gpus) + GATHERED_AND_BUCKET
    expected += hand.kept + hand.layer + hand.output + hand.vision
    (group,) = training_plan(shape, trainer_of(hand), gpu_gib=79).groups
    assert group.total("backward") / GIB == pytest.approx(expected, rel=TOLERANCE)


@each_model
def test_activations_equal_values_by_hand(hand: ByHand) -> None:
    shape = shape_of(hand.model, ("vision",))
    (group,) = training_plan(shape, trainer_of(hand), gpu_gib=79).groups
    parts = {name: round(size / GIB, 1) for name, size in group.phases["backward"].items()}
    assert parts["activations"] == hand.kept
    assert parts["vision and projector"] == hand.vision
    assert parts["largest layer, in work"] == hand.layer
    assert parts.get("output rows", 0) == pytest.approx(hand.output, abs=0.1)


@each_model
def test_states_equal_deepspeeds_estimates(hand: ByHand) -> None:
    """At stage 2, DeepSpeed's 18 bytes include 16-bit gradients of a micro-batch, which count as a buffer here."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as of_stage_3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as of_stage_2

    shape = shape_of(hand.model)
    assert shape.frozen == 0
    nodes = {"num_gpus_per_node": 8, "num_nodes": hand.gpus // 8, "cpu_offload": False}
    third, second = (trainer_states(shape, trainer_of(hand, stage=stage)).on_gpu for stage in (3, 2))
    assert third == pytest.approx(of_stage_3(shape.total, 0, cpu_offload_params=False, **nodes)[1], rel=1e-6)
    assert second == pytest.approx(of_stage_2(shape.total, **nodes)[1] - 2 * shape.total / hand.gpus, rel=1e-6)


def test_a_measured_update_needs_at_most_a_fifth_less_than_planned(tmp_path: Path) -> None:
    """The model has the width and vocabulary of Qwen2.5-VL-7B and four layers, on one GPU, as in docs/gpu.md."""
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 4, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(text))
    shape = shape_of(str(tmp_path))
    assert round(shape.total / 1e9, 2) == 2.02
    trainer = TrainerSettings(1, 3, "bf16", "none", MEASURED["micro_batch_tokens"], 8192, checkpointing=True)
    (group,) = training_plan(shape, trainer, gpu_gib=139).groups
    assert trainer_states(shape, trainer).on_gpu / GIB == pytest.approx(MEASURED["in_use_gib"], rel=0.05)
    assert MEASURED["peak_gib"] <= group.peak / GIB <= 1.2 * MEASURED["peak_gib"]
