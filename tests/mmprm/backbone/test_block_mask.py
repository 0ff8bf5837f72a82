"""Test FlexAttention's block mask, built without T² pairs, against torch's own, which evaluates all pairs."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mmprm.backbone.masks import ancestors, attention_mask, block_mask


def subtree_ends(width: int, seed: int) -> list[int]:
    """Return end_T of random trees: the subtree of a token ends within the subtree of each ancestor."""
    rng = random.Random(seed)
    ends = [0] * width

    def fill(start: int, stop: int) -> None:
        stem = min(stop, start + rng.randint(1, 200))
        ends[start:stem] = [stop - 1] * (stem - start)
        while stem < stop:
            child = min(stop, stem + rng.randint(1, max(1, (stop - stem))))
            fill(stem, child)
            stem = child

    start = 0
    while start < width:
        stop = min(width, start + rng.randint(1, width))
        fill(start, stop)
        start = stop
    return ends


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300, 1024, 1500])
def test_blocks_equal_those_of_torch(width: int) -> None:
    end_BT = torch.tensor([subtree_ends(width, seed) for seed in range(4)])
    ours, theirs = block_mask(end_BT), create_block_mask(ancestors(end_BT), 4, None, width, width, device="cpu")
    assert ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())


def test_full_blocks_hold_only_pairs_that_see_each_other() -> None:
    width = 1500
    end_BT = torch.tensor([subtree_ends(width, seed) for seed in range(4)])
    ours, theirs = block_mask(end_BT), create_block_mask(ancestors(end_BT), 4, None, width, width, device="cpu")
    whole = width // 128  # torch counts an incomplete last block as partial
    assert torch.equal(ours.full_kv_num_blocks[:, :, :whole], theirs.full_kv_num_blocks[:, :, :whole])
    assert ours.full_kv_num_blocks.sum() > 10


def test_attention_equals_the_dense_mask() -> None:
    end_BT = torch.tensor([subtree_ends(300, seed) for seed in range(3)])
    query, key, value = (torch.randn(3, 2, 300, 16) for _ in range(3))
    ours = flex_attention(query, key, value, block_mask=block_mask(end_BT))
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask(end_BT))
    torch.testing.assert_close(ours, dense, atol=1e-5, rtol=1e-5)
