"""Test the formulas for memory and time against published numbers, tensors that torch keeps, and values by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model, Qwen3MoeConfig, Qwen3MoeModel

from mmprm.planning.memory import (
    LOGITS_IN_WORK,
    Layers,
    attention_operations,
    buffers,
    forward_only,
    gpu_hours,
    kept_activations,
    key_value_bytes,
    matrix_operations,
    output_layer,
    saved_by_a_layer,
    states,
    working_activations,
)
from policy_rl.trainer.output_layer import LOGITS_AT_ONCE


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_memory_equals_that_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """Figure 1 of Rajbhandari et al. 2020 has 7.5 billion parameters on 64 GPUs, K = 12 and gradients of two bytes."""
    held = states(7_500_000_000, 0, 64, stage, "bf16", "none")
    assert (held.on_gpu - held.gradients / 2) / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert held.host == 0


def test_states_by_hand() -> None:
    """The model has 100 trained and 20 frozen parameters on 4 GPUs."""
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


ROWS, LENGTH = 2, 64


def saved_bytes(make: Callable[[int], nn.Module], layers: int, precision: str, checkpointing: bool) -> int:
    """Return the bytes that autograd saves in a forward pass, excluding parameters."""
    model = make(layers).to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor  # kept alive, so that no address is reused
        return tensor

    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, LENGTH // 2 :] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def saved_by_one_more(make: Callable[[int], nn.Module], precision: str, checkpointing: bool) -> float:
    """Return the bytes per token that one more layer adds."""
    three, two = (saved_bytes(make, layers, precision, checkpointing) for layers in (3, 2))
    return (three - two) / (ROWS * LENGTH)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(64, 160, 4, 2), (96, 160, 4, 4), (64, 320, 2, 2)])
def test_torch_keeps_as_many_bytes_as_the_formula_says(shape: tuple[int, int, int, int], precision: str) -> None:
    hidden, intermediate, heads, groups = shape

    def make(layers: int) -> nn.Module:
        config = Qwen2Config(
            vocab_size=8,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
        )
        return Qwen2Model(config)

    layers = Layers(1, hidden, hidden, intermediate, heads, True)
    assert saved_by_one_more(make, precision, False) == saved_by_a_layer(layers, LENGTH, precision)
    assert saved_by_one_more(make, precision, True) == (2 if precision == "bf16" else 4) * hidden


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", [(64, 4, 2, 16), (64, 8, 2, 16), (96, 4, 2, 32)])
def test_torch_keeps_normalized_heads_of_qwen3(shape: tuple[int, int, int, int], precision: str) -> None:
    hidden, heads, groups, size = shape

    def make(layers: int) -> nn.Module:
        config = Qwen3Config(
            vocab_size=8,
            hidden_size=hidden,
            intermediate_size=160,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=size,
        )
        return Qwen3Model(config)

    layers = Layers(1, hidden, heads * size, 160, heads, True, groups, normalizes_heads=True)
    assert saved_by_one_more(make, precision, False) == saved_by_a_layer(layers, LENGTH, precision)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("experts", "routed", "inner"), [(8, 2, 48), (8, 4, 48), (8, 2, 80), (16, 2, 48)])
def test_torch_keeps_the_tokens_of_experts(experts: int, routed: int, inner: int, precision: str) -> None:
    def make(layers: int) -> nn.Module:
        torch.manual_seed(0)
        config = Qwen3MoeConfig(
            vocab_size=8,
            hidden_size=64,
            moe_intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_experts=experts,
            num_experts_per_tok=routed,
        )
        return Qwen3MoeModel(config)

    layers = Layers(1, 64, 64, routed * inner, 4, True, 2, True, experts, routed)
    expected = saved_by_a_layer(layers, LENGTH, precision)
    # The number of tokens per expert is stored as well: four bytes per expert, over all tokens.
    assert saved_by_one_more(make, precision, False) == expected + 4 * experts / (ROWS * LENGTH)


def test_working_memory_by_hand() -> None:
    """With H = A = 4, I = 8, 2 heads, 3 layers, and 16 tokens in bf16, a layer keeps 64 + 8 + 32 + 64 + 8 + 32."""
    layers = Layers(3, 4, 4, 8, 2, True)
    assert saved_by_a_layer(layers, 16, "bf16") == 208
    assert kept_activations(layers, 10, 16, "bf16", checkpointing=False) == 10 * (3 * 208 + 8 * 4)
    assert working_activations(layers, 10, 16, "bf16", checkpointing=False) == 10 * 3 * 2 * 8
    assert kept_activations(layers, 10, 16, "bf16", checkpointing=True) == 10 * (3 * 2 * 4 + 8 * 4)
    assert working_activations(layers, 10, 16, "bf16", checkpointing=True) == 10 * (208 + 3 * 2 * 8)
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
    """GPT-3 has 175 billion parameters, 300 billion tokens, and 3.14e23 operations (Brown et al. 2020, table D.1)."""
    assert matrix_operations(174_600_000_000, 300e9, passes=3) == pytest.approx(3.14e23, rel=2e-3)
    assert attention_operations(Layers(2, 8, 8, 1, 1, True), [(3, 10.0)], causal=False, passes=3) == 4 * 2 * 8 * 300 * 3
    assert attention_operations(Layers(2, 8, 8, 1, 1, True), [(3, 10.0)], causal=True, passes=1) == 2 * 2 * 8 * 300
    assert gpu_hours(3600e12, peak=1000e12, utilization=0.5) == pytest.approx(0.002)


def test_output_layer_by_hand() -> None:
    """For V = 2²⁰ and H = 4, 64 tokens have 2²⁶ logits in one chunk; 128 tokens have two chunks of 2¹⁹ rows."""
    rows, logits = 2**20, 2 * 4 * 2**26
    assert output_layer(rows, 4, 64, "bf16") == logits + 2 * 16 * (64 + rows) + 8 * rows
    assert output_layer(rows, 4, 128, "bf16") == logits + 2 * 16 * (128 + rows // 2) + 8 * rows
    assert output_layer(rows, 4, 128, "fp32") == logits + 16 * (128 + rows // 2) + 16 * rows, "no copies"
    assert output_layer(rows, 4, 64, "bf16", float32=False) == logits + 16 * (64 + rows) + 8 * rows
    frozen = output_layer(rows, 4, 128, "bf16", trained=False)
    assert frozen == logits + 2 * 16 * (128 + rows // 2), "same as with adapters"
    assert output_layer(rows, 4, 64, "bf16", backward=False) == logits
    assert output_layer(100, 4, 10, "fp32", backward=False) == 2 * 4 * 1000, "fewer logits"


def test_plan_and_policy_use_the_same_logit_limit() -> None:
    assert LOGITS_IN_WORK == LOGITS_AT_ONCE


def test_key_value_cache_of_published_models() -> None:
    """Qwen2.5-7B has 28 layers with 4 key-value heads of size 128, or 56 KiB per token in bf16."""
    layers = Layers(28, 3584, 3584, 18944, 28, True, 4)
    assert key_value_bytes(layers, 1, 2) == 56 * 1024
    assert key_value_bytes(layers, 2, 2) == 28 * 1024
    assert key_value_bytes(layers, 4, 2) == 14 * 1024
    assert key_value_bytes(layers, 8, 2) == 14 * 1024, "more GPUs than key heads"
    assert key_value_bytes(layers, 1, 4) == 112 * 1024
