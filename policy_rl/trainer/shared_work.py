"""Decide whether the trainer computes the prompt of a group once."""

from __future__ import annotations

from torch import nn

from mmprm.backbone.masks import use_block_masks, why_not_packed
from mmprm.training.ranks import Ranks


def prepare_shared_prompts(backbone: nn.Module, ranks: Ranks) -> bool:
    """Return whether a group's responses can share one copy of the prompt; if so, set up block masks on a GPU."""
    reason = why_not_packed(backbone)
    if reason is None and ranks.device.type == "cuda":
        use_block_masks(backbone)
    if reason is not None and ranks.is_main:
        print(f"each response is trained with its own copy of the prompt, which is slower: {reason}", flush=True)
    return reason is None
