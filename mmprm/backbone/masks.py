"""Build attention masks for packed sequences, in which a token attends only to its ancestors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmprm.backbone.tree_attention import attend_in_blocks
from mmprm.model_limits import limits_of


def attention_mask(end_BT: Tensor) -> Any:
    """Return a mask in which token i attends to token j if and only if j ≤ i ≤ end[j], the last token of j's subtree.

    A token thus attends to itself and its ancestors. The result is a block mask for FlexAttention on GPU, and a boolean
    mask_B1TT for SDPA on CPU, with T² entries per row; see `packed_mask` for the alternative.
    """
    if end_BT.is_cuda:
        return block_mask(end_BT)
    position_T = torch.arange(end_BT.shape[1], device=end_BT.device)
    return ((position_T <= position_T[:, None]) & (position_T[:, None] <= end_BT[:, None, :]))[:, None]


def block_mask(end_BT: Tensor) -> Any:
    """Build the mask of `attention_mask` as a FlexAttention block mask, with one entry per pair of 128-token blocks.

    `create_block_mask` evaluates all T² pairs (2.5 GiB at T = 16,384). Here, a query block I attends to some key of an
    earlier block J if max end[J] ≥ min I, and to all keys of J if min end[J] ≥ max I. A block attends to itself
    partially.
    """
    from torch.nn.attention.flex_attention import BlockMask

    rows, width = end_BT.shape
    count = -(-width // FLEX_BLOCK)
    spare = count * FLEX_BLOCK - width
    last_BN = torch.nn.functional.pad(end_BT, (0, spare), value=-1).view(rows, count, FLEX_BLOCK).amax(dim=2)
    first_BN = torch.nn.functional.pad(end_BT, (0, spare), value=width).view(rows, count, FLEX_BLOCK).amin(dim=2)
    block_N = torch.arange(count, device=end_BT.device)
    start_N, stop_N = block_N * FLEX_BLOCK, torch.clamp((block_N + 1) * FLEX_BLOCK, max=width)
    earlier_NN = block_N[None, :] < block_N[:, None]
    seen_BNN = earlier_NN & (last_BN[:, None, :] >= start_N[:, None])
    full_BNN = earlier_NN & (first_BN[:, None, :] >= stop_N[:, None] - 1)
    partial_BNN = (seen_BNN & ~full_BNN) | torch.eye(count, dtype=torch.bool, device=end_BT.device)
    return BlockMask.from_kv_blocks(
        *_listed(partial_BNN),
        *_listed(full_BNN),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=ancestors(end_BT),
        seq_lengths=(width, width),
    )


def _listed(sees_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each query block, the number and the indices of the key blocks that it attends to.

    This is FlexAttention's format; the indices of all other key blocks follow.
    """
    number_B1N = sees_BNN.sum(dim=2, dtype=torch.int32)[:, None]
    indices_B1NN = sees_BNN.to(torch.int8).argsort(dim=2, descending=True, stable=True).to(torch.int32)[:, None]
    return number_B1N, indices_B1NN


def on_grid(width: int) -> int:
    """Round a row's width up to a multiple of the block size on GPU, so that FlexAttention compiles few shapes.

    On CPU, the width does not change.
    """
    return -(-width // FLEX_BLOCK) * FLEX_BLOCK if torch.cuda.is_available() else width


def packed_mask(end_BT: Tensor) -> Any:
    """Return the attention mask in the form that a model prepared by `use_block_masks` accepts.

    On CPU, where FlexAttention has no gradient, this is end_B11T, from which mmprm.backbone.tree_attention builds its
    blocks. On GPU, it is the mask of `attention_mask`.
    """
    return attention_mask(end_BT) if end_BT.is_cuda else end_BT[:, None, None]


def ancestors(end_BT: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the FlexAttention `mask_mod` of `attention_mask`: each token attends only to its ancestors."""

    def sees(b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i <= end_BT[b, j])

    return sees


def why_not_packed(backbone: nn.Module) -> str | None:
    """Return the reason why a model cannot process packed rows, or None if it can."""
    known = limits_of(backbone.config.model_type).packing
    if known is not None:
        return known
    config = backbone.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return f"its layers do not attend to all previous tokens ({', '.join(sorted(kinds)) or 'a sliding window'})"
    if config._attn_implementation not in ("sdpa", PACKED):
        return f"its attention implementation {config._attn_implementation} accepts no custom mask; it needs sdpa"
    if not getattr(config, "rope_parameters", None):
        return "it has no rotary position embeddings"
    return None


FLEX_BLOCK = 128
"""Number of tokens per FlexAttention block; equal to FlexAttention's default block size."""
COMPILED_GRAPHS = 64
"""Maximum number of FlexAttention graphs that torch may compile. One model uses 6 of torch's default limit of 8, beyond
which torch would silently materialize the scores of all T² pairs."""

PACKED = "mmprm_packed"
"""Name of the registered attention function that accepts the masks of `packed_mask` and otherwise calls SDPA."""


def use_block_masks(backbone: nn.Module) -> None:
    """Make a model accept the masks of `packed_mask` in addition to ordinary ones."""
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        if isinstance(mask, BlockMask):
            return flex_attention_forward(module, query, key, value, mask, **options)
        if mask is not None and mask.dtype == torch.int64:
            return attend_in_blocks(query, key, value, mask, options["dropout"], options["scaling"]), None
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    if torch.cuda.is_available():
        torch._dynamo.config.recompile_limit = max(COMPILED_GRAPHS, torch._dynamo.config.recompile_limit)
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    AttentionInterface.register(PACKED, attend)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    nested = backbone.config.get_text_config() is not backbone.config
    backbone.set_attn_implementation({"text_config": PACKED} if nested else PACKED)


CPU_ROW = 3
"""Width of a packed row on CPU, as a multiple of the longest sample. Wider rows cost more, because attention is
quadratic in width."""
