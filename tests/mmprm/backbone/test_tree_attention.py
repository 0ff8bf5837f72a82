"""Test attention in blocks: what each block attends to, and equal outputs and gradients with a dense mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mmprm.backbone import tree_attention
from mmprm.backbone.masks import attention_mask, packed_mask
from mmprm.backbone.token_tree import token_tree
from mmprm.backbone.tree_attention import attend_in_blocks, blocks_of

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8)


def ends(trees: list[list[list[int]]]) -> torch.Tensor:
    """Return end_BT of one tree per row; padding tokens attend only to themselves."""
    found = [token_tree([np.asarray(path, dtype=np.int32) for path in paths]).end_T for paths in trees]
    width = max(map(len, found))
    rows = [np.concatenate([end_T, np.arange(len(end_T), width)]) for end_T in found]
    return torch.from_numpy(np.stack(rows)).long()


@pytest.mark.parametrize("block", [2, 4])
def test_blocks_by_hand(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree 7 ─ (4 | 8 ─ (5 ─ 6 | 9)) has the tokens 7 4 8 5 6 9; the second row is one path of two tokens."""
    monkeypatch.setattr(tree_attention, "BLOCK", block)
    blocks_of.cache_clear()
    end_BT = ends([[[7, 8, 9], [7, 8, 5, 6], [7, 4]], [[1, 2]]])
    trail_NA, mask_N1CK = blocks_of(packed_mask(end_BT), torch.float32)
    blocks_of.cache_clear()
    number_N = (mask_N1CK[:, 0, :, : trail_NA.shape[1]] == 0).any(dim=1).sum(dim=1).tolist()
    trails = [row[:number] for row, number in zip(trail_NA.tolist(), number_N, strict=True)]
    above = {2: [[], [0], [0, 2, 3], [], [], []], 4: [[], [0, 2, 3], []]}  # the second row begins at index 6
    assert trails == above[block]
    token_6 = mask_N1CK[4 // block, 0, 4 % block]  # attends to 7, 8, 5 and itself
    assert int((token_6 == 0).sum()) == 4


@settings(max_examples=40, deadline=None)
@given(st.lists(SEQUENCES, min_size=1, max_size=3), st.sampled_from([1, 3, 8, 64]), st.integers(0, 2**30))
def test_output_and_gradients_equal_a_dense_mask(trees: list[list[list[int]]], block: int, seed: int) -> None:
    """Rows have padding and two query heads per key head; blocks lie within a tree, span rows, or exceed them all."""
    end_BT = ends(trees)
    rows, width = end_BT.shape
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (rows, 4, width, 8), "key": (rows, 2, width, 8), "value": (rows, 2, width, 8)}
    made = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes.values()]
    upstream = torch.randn(rows, width, 4, 8, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_attention, "BLOCK", block)
        blocks_of.cache_clear()
        ours = attend_in_blocks(*made, packed_mask(end_BT), 0.0, 0.3)
        blocks_of.cache_clear()
    query, key, value = made[0], *(tensor.repeat_interleave(2, dim=1) for tensor in made[1:])
    dense = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask(end_BT), scale=0.3).transpose(1, 2)
    torch.testing.assert_close(ours, dense)
    for mine, theirs in zip(*(torch.autograd.grad(out, made, upstream) for out in (ours, dense)), strict=True):
        torch.testing.assert_close(mine, theirs)
