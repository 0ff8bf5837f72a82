"""Decide what the trainer computes once: the prompt of a group, and the features of images."""

from __future__ import annotations

from torch import nn

from mmprm.backbone.image_features import FeatureCache, why_not_cached
from mmprm.backbone.masks import use_block_masks, why_not_packed
from mmprm.training.ranks import Ranks


def prepare_shared_prompts(backbone: nn.Module, ranks: Ranks) -> bool:
    """Return whether a group's responses can share one copy of the prompt; on a GPU, set up block masks for it."""
    reason = why_not_packed(backbone)
    if reason is None and ranks.device.type == "cuda":
        use_block_masks(backbone)
    if reason is not None and ranks.is_main:
        print(f"each response is trained with its own copy of the prompt, which is slower: {reason}", flush=True)
    return reason is None


def feature_cache(backbone: nn.Module, ranks: Ranks, zero_stage: int) -> FeatureCache:
    """Create the cache of image features, which is disabled if the vision tower or the projector is trained."""

    def any_rank(flag: bool) -> bool:
        return ranks.sum(float(flag))[0] > 0

    sharded = ranks.count > 1 and zero_stage == 3
    return FeatureCache(why_not_cached(backbone) is None, any_rank if sharded else bool)
