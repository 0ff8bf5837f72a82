"""Compute attention for packed rows on CPU block by block.

A dense mask would have T² entries for a row of T tokens, and FlexAttention has no backward pass on CPU.

The tokens of all rows are cut into blocks of consecutive tokens. The tokens of a block attend only to the block itself
and to the ancestors of its first token. These are fewer than the tokens of the longest solution, so the cost is linear
in the number of tokens.

Shapes: B row, T token of a row, F token of all rows, N block, C token of a block, A ancestor of a block's first token,
K = A + C key that a block sees, H query head, G key or value head, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64
"""Number of tokens per block. Longer blocks compute mostly masked scores, and shorter ones copy more keys."""


class Blocks(NamedTuple):
    """Holds each block's attention mask, and the indices of the keys in earlier blocks that the block's tokens attend
    to."""

    trail_NA: Tensor
    """Indices of the keys in earlier blocks that each block's tokens attend to, numbered across the F tokens of all
    rows. Padding entries are arbitrary."""
    mask_N1CK: Tensor
    """Additive mask: 0 where a token may attend to a key, −∞ elsewhere."""


def attend_in_blocks(
    query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, end_B11T: Tensor, dropout: float, scaling: float
) -> Tensor:
    """Return out_BTHD = softmax(scaling · q kᵀ) v, where token i attends to tokens j of its row with j ≤ i ≤ end[j].

    end[j] is the last token of j's subtree.
    """
    rows, heads, width, size = query_BHTD.shape
    groups = key_BGTD.shape[1]
    trail_NA, mask_N1CK = blocks_of(end_B11T, query_BHTD.dtype)
    count, length = mask_N1CK.shape[0], mask_N1CK.shape[2]
    spare = count * length - rows * width

    def in_blocks(tensor_BHTD: Tensor) -> Tensor:
        flat = functional.pad(tensor_BHTD.transpose(1, 2).flatten(0, 1).flatten(1), (0, 0, 0, spare))
        return flat.view(count, length, -1)

    query_NHCD = in_blocks(query_BHTD).unflatten(2, (heads, size)).transpose(1, 2)
    both_NCX = torch.cat([in_blocks(key_BGTD), in_blocks(value_BGTD)], dim=2)
    # Use an embedding lookup, because its gradient accumulates rows in parallel.
    trail_NAX = functional.embedding(trail_NA, both_NCX.flatten(0, 1))
    both_NKGD = torch.cat([trail_NAX, both_NCX], dim=1).unflatten(2, (2 * groups, size))
    repeats = heads // groups  # number of query heads per key head
    both_NHKD = both_NKGD[:, :, :, None].expand(-1, -1, -1, repeats, -1).flatten(2, 3).transpose(1, 2)
    key_NHKD, value_NHKD = both_NHKD.chunk(2, dim=1)
    out_NHCD = functional.scaled_dot_product_attention(
        query_NHCD, key_NHKD, value_NHKD, attn_mask=mask_N1CK, dropout_p=dropout, scale=scaling
    )
    return out_NHCD.transpose(1, 2).reshape(count * length, heads, size)[: rows * width].unflatten(0, (rows, width))


@lru_cache(maxsize=1)  # every layer of a model requests the blocks of the same tensor
def blocks_of(end_B11T: Tensor, dtype: torch.dtype) -> Blocks:
    """Cut all rows into consecutive blocks; tokens that pad the last block attend only to themselves."""
    rows, width = end_B11T.shape[0], end_B11T.shape[-1]
    count = -(-rows * width // BLOCK)
    index_F = torch.arange(count * BLOCK)
    end_F = index_F.clone()
    end_F[: rows * width] = (end_B11T[:, 0, 0] + width * torch.arange(rows)[:, None]).flatten()
    start_N = index_F[::BLOCK, None]
    above_NF = (index_F < start_N) & (start_N <= end_F)
    number_N = above_NF.sum(dim=1)
    block_P, index_P = above_NF.nonzero(as_tuple=True)
    trail_NA = torch.zeros(count, int(number_N.max()), dtype=torch.int64)
    last_NA = torch.full_like(trail_NA, -1)  # -1 for padding, which no token sees
    rank_P = torch.arange(len(index_P)) - (number_N.cumsum(0) - number_N)[block_P]
    trail_NA[block_P, rank_P], last_NA[block_P, rank_P] = index_P, end_F[index_P]
    index_NC, end_NC = index_F.view(count, BLOCK), end_F.view(count, BLOCK)
    itself_CC = torch.ones(BLOCK, BLOCK, dtype=torch.bool).tril()
    own_NCC = itself_CC & (index_NC[:, :, None] <= end_NC[:, None])
    sees_NCK = torch.cat([index_NC[:, :, None] <= last_NA[:, None], own_NCC], dim=2)
    mask_NCK = torch.zeros(sees_NCK.shape, dtype=dtype).masked_fill_(~sees_NCK, -torch.inf)
    return Blocks(trail_NA, mask_NCK[:, None])
