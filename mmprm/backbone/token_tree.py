"""Merge solutions with common prefixes into one token sequence that contains each shared token once. Does not import
torch.

Shapes: P path, T token of the tree, L token of a path.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Holds the prefix tree of several token sequences in depth-first order.

    Two sequences share a token if they agree on it and on everything before it, regardless of step borders. Token i has
    the earlier tokens of its own sequences as ancestors, and attends to token j if and only if j ≤ i ≤ end[j]. Its
    position is its depth.
    """

    ids_T: Ints
    end_T: Ints
    """Index of the last token in each token's subtree, which includes the token itself."""
    depth_T: Ints
    indices_PL: tuple[Ints, ...]
    """Indices of each sequence's tokens in the tree, in the order in which the sequences were given."""

    def __len__(self) -> int:
        return len(self.ids_T)


def token_tree(paths: Sequence[Ints]) -> TokenTree:
    """Build the prefix tree of token sequences.

    In lexicographic order, each sequence branches off the previous one and adds its own suffix.
    """
    ids, depth, positions = [], [], [_NOTHING] * len(paths)
    end_T = np.zeros(sum(map(len, paths)), dtype=np.int32)
    count, previous, trail = 0, _NOTHING, _NOTHING
    for path in _sorted(paths):
        shared = common_prefix(previous, paths[path])
        end_T[trail[shared:]] = count - 1
        added = len(paths[path]) - shared
        trail = np.concatenate([trail[:shared], np.arange(count, count + added, dtype=np.int32)])
        ids.append(paths[path][shared:])
        depth.append(np.arange(shared, shared + added, dtype=np.int32))
        positions[path], previous, count = trail, paths[path], count + added
    end_T[trail] = count - 1
    return TokenTree(np.concatenate(ids), end_T[:count], np.concatenate(depth), tuple(positions))


def cut_at_subtrees(paths: Sequence[Ints], max_tokens: int) -> list[list[int]]:
    """Group sequences into token trees of at most `max_tokens` tokens, and return the sequence indices of each group.

    A longer sequence gets its own group. Neighbors in depth-first order stay together. Tokens that two groups share are
    repeated in both.
    """
    groups: list[list[int]] = []
    tokens, previous = 0, _NOTHING
    for path in _sorted(paths):
        added = len(paths[path]) - common_prefix(previous, paths[path])
        if groups and tokens + added <= max_tokens:
            groups[-1].append(path)
            tokens += added
        else:
            groups.append([path])
            tokens = len(paths[path])
        previous = paths[path]
    return groups


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Pack pieces of the given lengths into rows of at most `width` tokens, and return the piece indices of each row.

    A longer piece gets its own row. Each piece, longest first, goes into the row that it fills best (best-fit
    decreasing: at most 11/9 of the minimal number of rows, plus one).
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for piece in sorted(range(len(lengths)), key=lambda piece: (-lengths[piece], piece)):
        position = bisect_left(free, (lengths[piece], 0))
        if position < len(free):
            left, row = free.pop(position)
            rows[row].append(piece)
        else:
            left, row = width, len(rows)
            rows.append([piece])
        insort(free, (left - lengths[piece], row))
    return rows


def common_prefix(left: Ints, right: Ints) -> int:
    """Return the number of tokens in the common prefix of two sequences."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length


def lexicographic_key(ids: Ints) -> bytes:
    """Return a byte string that sorts like the sequence of token ids, which must not be negative."""
    return ids.astype(">u4").tobytes()


_NOTHING: Ints = np.zeros(0, dtype=np.int32)


def _sorted(paths: Sequence[Ints]) -> list[int]:
    return sorted(range(len(paths)), key=lambda path: (lexicographic_key(paths[path]), path))
