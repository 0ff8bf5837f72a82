"""Test token trees: which tokens are shared, where trees are split, and what each token attends to."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmprm.backbone.masks import ancestors, attention_mask
from mmprm.backbone.token_tree import cut_at_subtrees, fill_rows, token_tree

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


def arrays(paths: list[list[int]]) -> list[np.ndarray]:
    return [np.asarray(path, dtype=np.int32) for path in paths]


def test_a_tree_by_hand() -> None:
    """7 is shared by 7 8 9, 7 8 5 6 and 7 4, and 8 by two of them; nodes are in depth-first order, sorted by token.

    7 ─┬─ 4
       └─ 8 ─┬─ 5 ─ 6
             └─ 9
    """
    tree = token_tree(arrays([[7, 8, 9], [7, 8, 5, 6], [7, 4]]))
    assert tree.ids_T.tolist() == [7, 4, 8, 5, 6, 9]
    assert tree.depth_T.tolist() == [0, 1, 1, 2, 3, 2]
    assert tree.end_T.tolist() == [5, 1, 5, 4, 4, 5]
    assert [positions.tolist() for positions in tree.indices_PL] == [[0, 2, 5], [0, 2, 3, 4], [0, 1]]
    seen = [[0], [0, 1], [0, 2], [0, 2, 3], [0, 2, 3, 4], [0, 2, 5]]
    mask_TT = attention_mask(torch.from_numpy(tree.end_T)[None])[0, 0]
    assert [row.nonzero()[:, 0].tolist() for row in mask_TT] == seen


@given(SEQUENCES)
def test_any_tree(paths: list[list[int]]) -> None:
    """There is one token per distinct prefix, and each token attends to exactly its own prefix."""
    tree = token_tree(arrays(paths))
    assert len(tree) == len({tuple(path[:length]) for path in paths for length in range(1, len(path) + 1)})
    mask_TT = attention_mask(torch.from_numpy(tree.end_T)[None])[0, 0]
    for path, positions in zip(paths, tree.indices_PL, strict=True):
        assert tree.ids_T[positions].tolist() == path
        assert tree.depth_T[positions].tolist() == list(range(len(path)))
        for depth, position in enumerate(positions):
            assert mask_TT[position].nonzero()[:, 0].tolist() == positions[: depth + 1].tolist()


@given(SEQUENCES, st.integers(1, 20))
def test_any_split_into_groups(paths: list[list[int]], most: int) -> None:
    """Each sequence appears once, only single sequences exceed the budget, and no two adjacent groups could be
    merged.
    """
    groups = cut_at_subtrees(arrays(paths), most)
    assert sorted(path for group in groups for path in group) == list(range(len(paths)))
    sizes = [len(token_tree(arrays([paths[path] for path in group]))) for group in groups]
    assert all(size <= most or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    for group, following in pairwise(groups):
        more = [paths[path] for path in (*group, following[0])]
        assert len(token_tree(arrays(more))) > most


def test_a_split_by_hand() -> None:
    """1 2 3, 1 2 4 and 1 5 take 5 tokens as one tree; the first two take 4, and the third repeats the 1."""
    paths = arrays([[1, 5], [1, 2, 3], [1, 2, 4]])
    assert cut_at_subtrees(paths, 5) == [[1, 2, 0]]
    assert cut_at_subtrees(paths, 4) == [[1, 2], [0]]
    assert cut_at_subtrees(paths, 2) == [[1], [2], [0]]


def test_rows_by_hand() -> None:
    """At width 10, 7 is joined by 3 and not by 5, 5 is joined by 4, and 12 has its own row."""
    assert fill_rows([5, 3, 12, 7, 4], 10) == [[2], [3, 1], [0, 4]]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 30))
def test_any_rows(lengths: list[int], width: int) -> None:
    rows = fill_rows(lengths, width)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[piece] for piece in row) <= width for row in rows)
    half_full = [row for row in rows if 2 * sum(lengths[piece] for piece in row) <= width]
    assert len(half_full) <= 1


def test_block_masks_follow_the_same_rule() -> None:
    """FlexAttention's mask equals the dense one for two trees and padding in a row, and for one long tree."""
    from torch.nn.attention.flex_attention import create_mask

    end_BT = torch.tensor([[2, 1, 2, 4, 4, 5, 6], [6, 1, 6, 6, 5, 5, 6]])
    dense = attention_mask(end_BT)
    assert torch.equal(create_mask(ancestors(end_BT), 2, 1, 7, 7, device="cpu"), dense)
    assert dense[0, 0].nonzero().tolist() == [
        *([0, 0], [1, 0], [1, 1], [2, 0], [2, 2]),
        *([3, 3], [4, 3], [4, 4]),
        *([5, 5], [6, 6]),
    ]


def test_packed_paths_lose_nothing_but_padding() -> None:
    """Sequences without common tokens form separate branches, which is plain sample packing."""
    paths = arrays([[1, 2, 3], [4, 5], [6]])
    tree = token_tree(paths)
    assert len(tree) == sum(map(len, paths))
    mask_TT = attention_mask(torch.from_numpy(tree.end_T)[None])[0, 0]
    block = torch.block_diag(*(torch.ones(len(path), len(path)).tril() for path in paths)).bool()
    assert torch.equal(mask_TT, block)


@pytest.mark.parametrize("width", [3, 100])
def test_all_rows_have_one_width(width: int) -> None:
    assert fill_rows([], width) == []
