"""Compute checksums of tensors on their own device. CPU and GPU give the same checksums.

A checksum is Σ_w word[w] · multiplier[w mod C] · multiplier[w div C] + size, modulo 2^64, over the 64-bit words of the
tensor's bytes, padded with zeros; C words make a chunk and size is the number of bytes. All multipliers are odd, so
that a change of any one word changes the sum, and pseudo-random, so that no regular change of several words cancels.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

CHUNK_WORDS = 2**20
"""Number of 64-bit words to multiply at a time, which limits memory use."""
WORD_BYTES = 8
_MIX = (0x5851F42D4C957F2D, 0x2545F4914F6CDD1D)


def checksum(tensor: Tensor) -> Tensor:
    """Return the checksum of a tensor's bytes in row-major order as an int64 scalar on the tensor's device."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    size = flat.numel()
    if size % WORD_BYTES or flat.data_ptr() % WORD_BYTES:
        flat = torch.cat([flat, flat.new_zeros(-size % WORD_BYTES)])
    words = flat.view(torch.int64)
    sums = [(part * _multipliers(CHUNK_WORDS, part.device)[: len(part)]).sum() for part in words.split(CHUNK_WORDS)]
    per_chunk = torch.stack(sums)
    return (per_chunk * _odd(torch.arange(len(sums), device=flat.device))).sum() + size


@cache
def _multipliers(count: int, device: torch.device) -> Tensor:
    return _odd(torch.arange(count, device=device))


def _odd(index: Tensor) -> Tensor:
    """Map indices to odd pseudo-random 64-bit numbers."""
    mixed = (index + 1) * _MIX[0]
    mixed = (mixed ^ (mixed >> 29)) * _MIX[1]
    return mixed ^ (mixed >> 32) | 1
