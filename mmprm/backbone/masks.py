"""Build attention masks for packed sequences, in which a token attends only to its ancestors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmprm.backbone.tree_attention import attend_in_blocks


def attention_mask(end_BT: Tensor) -> Any:
    """Return a mask in which token i attends to token j if and only if j ≤ i ≤ end[j]: its ancestors and itself.

    The result is a block mask for FlexAttention on GPU, and a boolean mask_B1TT for SDPA on CPU, with T² entries per
    row; see `packed_mask` for the alternative.
    """
    if end_BT.is_cuda:
        from torch.nn.attention.flex_attention import create_block_mask

        rows, width = end_BT.shape
        return create_block_mask(ancestors(end_BT), rows, None, width, width, device=end_BT.device)
    place_T = torch.arange(end_BT.shape[1], device=end_BT.device)
    return ((place_T <= place_T[:, None]) & (place_T[:, None] <= end_BT[:, None, :]))[:, None]


def packed_mask(end_BT: Tensor) -> Any:
    """Return the same mask for a model prepared by `use_block_masks`.

    On CPU, where FlexAttention has no gradient, this is end_B11T, from which mmprm.backbone.tree_attention makes
    blocks.
    """
    return attention_mask(end_BT) if end_BT.is_cuda else end_BT[:, None, None]


def ancestors(end_BT: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the rule of `attention_mask` as a mask function for FlexAttention."""

    def sees(b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i <= end_BT[b, j])

    return sees


def why_not_packed(backbone: nn.Module) -> str | None:
    """Return why a model cannot read packed rows, or None if it can."""
    config = backbone.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return f"its layers do not attend to all previous tokens ({', '.join(sorted(kinds)) or 'a sliding window'})"
    if config._attn_implementation not in ("sdpa", PACKED):
        return f"its attention implementation {config._attn_implementation} accepts no custom mask; it needs sdpa"
    if not getattr(config, "rope_parameters", None):
        return "it has no rotary position embeddings"
    return None


PACKED = "mmprm_packed"
"""Name of the registered attention function: it handles the masks of `packed_mask`, and calls SDPA otherwise."""


def use_block_masks(backbone: nn.Module) -> None:
    """Make a model accept the masks of `packed_mask` in addition to those of ordinary batches."""
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

    AttentionInterface.register(PACKED, attend)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    nested = backbone.config.get_text_config() is not backbone.config
    backbone.set_attn_implementation({"text_config": PACKED} if nested else PACKED)


CPU_ROW = 3
"""Length of a packed row on CPU in multiples of the longest sample; a dense mask costs the square of the length."""
