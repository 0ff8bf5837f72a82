"""Measure FlexAttention over token trees, the output layer and the vision tower on a GPU, as parts of gpu.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_setup import DEVICE, GIB


def flex_attention() -> dict[str, Any]:
    """Compare FlexAttention over token trees with dense-mask attention in float32, and measure time and memory.

    Counts compiled graphs over many shapes, and measures time and memory at 16 k tokens.
    """
    from torch._dynamo.utils import counters
    from transformers.integrations.flex_attention import flex_attention_forward

    from mmprm.backbone.masks import attention_mask

    heads, kv_heads, size = 28, 4, 128
    module = torch.nn.Module()

    def inputs(rows: int, width: int, grad: bool = True) -> list[torch.Tensor]:
        shapes = [(rows, count, width, size) for count in (heads, kv_heads, kv_heads)]
        return [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=grad) for shape in shapes]

    def attend(tensors: Sequence[torch.Tensor], end_BT: torch.Tensor) -> torch.Tensor:
        output, _ = flex_attention_forward(module, *tensors, attention_mask(end_BT), scaling=size**-0.5, dropout=0.0)
        return output

    rows, width = 2, 1900
    end_BT, tensors = _subtree_ends(rows, width, prompt=300, cuts=7), inputs(rows, width)
    output = attend(tensors, end_BT)
    weights = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weights).sum(), tensors)
    index_T = torch.arange(width, device=DEVICE)
    dense = ((index_T <= index_T[:, None]) & (index_T[:, None] <= end_BT[:, None, :]))[:, None]
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    repeated = [exact[0], *(tensor.repeat_interleave(heads // kv_heads, 1) for tensor in exact[1:])]
    reference = torch.nn.functional.scaled_dot_product_attention(*repeated, attn_mask=dense).transpose(1, 2)
    reference_gradients = torch.autograd.grad((reference * weights.float()).sum(), exact)
    pairs = zip((output, *gradients), (reference, *reference_gradients), strict=True)
    errors = [float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    for number in range(14):
        rows, width = random.choice([1, 1, 2, 3]), random.randint(300, 4000)
        with torch.set_grad_enabled(number % 2 == 1):
            attend(inputs(rows, width, number % 2 == 1), _subtree_ends(rows, width, prompt=100, cuts=5))
    length = 16384
    end_BT, tensors = _subtree_ends(1, length, prompt=1000, cuts=7), inputs(1, length)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mask = attention_mask(end_BT)
    mask_gib = (torch.cuda.max_memory_allocated() - before) / GIB

    def tree() -> None:
        output, _ = flex_attention_forward(module, *tensors, mask, scaling=size**-0.5, dropout=0.0)
        torch.autograd.grad(output.sum(), tensors)

    def causal() -> None:
        output = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
        torch.autograd.grad(output.sum(), tensors)

    timed = {"tree": tree, "causal_flash": causal, "building_the_mask": lambda: attention_mask(end_BT)}
    return {
        "relative_errors": errors,
        "graphs": counters["stats"]["unique_graphs"],
        "recompile_limit": torch._dynamo.config.recompile_limit,
        "tokens": length,
        "mask_gib": mask_gib,
        "ms": {name: _milliseconds(function) for name, function in timed.items()},
    }


def output_layer() -> dict[str, Any]:
    """Measure log-probabilities of 8,192 tokens over a vocabulary of 152,064, with their gradients.

    The output layer computes in float32 (`trainer.float32_logits`) or in bfloat16. The relative errors of the gradients
    of 256 tokens are measured against tensors in float32, without TF32.
    """
    from policy_rl.trainer.output_layer import token_logprobs

    rows, hidden = 152_064, 3584
    weight_VH = (torch.randn(rows, hidden, device=DEVICE) / hidden**0.5).bfloat16().requires_grad_()
    hidden_MH = torch.randn(8192, hidden, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    token_M = torch.randint(rows, (8192,), device=DEVICE)

    def gradients(tensors: Sequence[torch.Tensor], float32: bool) -> tuple[torch.Tensor, ...]:
        logprobs_M, _ = token_logprobs(*tensors, None, token_M[: len(tensors[0])], float32_logits=float32)
        return torch.autograd.grad(logprobs_M.sum(), tensors)

    few = [hidden_MH[:256].detach().requires_grad_(), weight_VH]
    exact = gradients([tensor.detach().float().requires_grad_() for tensor in few], True)
    found: dict[str, Any] = {"tokens": len(token_M)}
    for name, float32 in (("float32", True), ("bfloat16", False)):
        errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(gradients(few, float32), exact, strict=True)]
        found[f"relative_errors_{name}"] = errors
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found[f"{name}_ms"] = _milliseconds(lambda f=float32: gradients([hidden_MH, weight_VH], f), 3)
        found[f"{name}_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
    return found


def vision_tower() -> dict[str, Any]:
    """Measure the milliseconds per image of Qwen2.5-VL-7B's vision tower in bfloat16, without gradients.

    The attention calls are one per window, as in transformers, or one per layer, as in training.
    """
    from transformers import AttentionInterface
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    from mmprm.backbone.window_attention import WINDOWS, attend_in_windows

    config = Qwen2_5_VLVisionConfig(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584
    )
    found: dict[str, Any] = {}
    for name, attention in (("per_window", "sdpa"), ("per_layer", WINDOWS)):
        AttentionInterface.register(WINDOWS, attend_in_windows)
        config._attn_implementation = attention
        with torch.device(DEVICE):
            tower = Qwen2_5_VisionTransformerPretrainedModel(config).to(torch.bfloat16).eval()
        for side in (72, 128):
            patches = torch.randn(side * side, 3 * 2 * 14 * 14, device=DEVICE, dtype=torch.bfloat16)
            grid = torch.tensor([[1, side, side]], device=DEVICE)
            with torch.no_grad():
                milliseconds = _milliseconds(lambda t=tower, p=patches, g=grid: t(p, grid_thw=g), 3)
            found[f"{side * 14}_pixels_{name}_ms"] = milliseconds
    return found


def _subtree_ends(rows: int, width: int, prompt: int, cuts: int) -> torch.Tensor:
    """Return end_BT, the last token that may attend to each token, for a prompt with several responses."""
    end_BT = torch.full((rows, width), width - 1)
    borders = sorted(random.sample(range(prompt + 1, width), cuts))
    for start, end in zip([prompt, *borders], [*borders, width], strict=True):
        end_BT[:, start:end] = end - 1
    return end_BT.to(DEVICE)


def _milliseconds(function: Callable[[], Any], repeats: int = 5) -> float:
    function()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats
