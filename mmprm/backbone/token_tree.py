"""Solutions that share a beginning as one sequence in which each shared token stands once. Pure; loads no torch.

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
    """The prefix tree of some token sequences, in depth-first order: two sequences share a token where they agree on it
    and on all before it, whatever steps it belongs to.

    Token i has all that stands before it in its own sequences as ancestors, and sees token j if and only if
    j ≤ i ≤ end[j]. Its position is its depth.
    """

    ids_T: Ints
    end_T: Ints
    """Last token of the subtree below a token, itself included."""
    depth_T: Ints
    places_PL: tuple[Ints, ...]
    """For each sequence, in the order given, where its tokens stand."""

    def __len__(self) -> int:
        return len(self.ids_T)


def token_tree(paths: Sequence[Ints]) -> TokenTree:
    """In lexicographic order each sequence branches off the one before it, so the tree is what each adds."""
    ids, depth, places = [], [], [_NOTHING] * len(paths)
    end_T = np.zeros(sum(map(len, paths)), dtype=np.int32)
    count, previous, trail = 0, _NOTHING, _NOTHING
    for path in _sorted(paths):
        shared = common_prefix(previous, paths[path])
        end_T[trail[shared:]] = count - 1
        added = len(paths[path]) - shared
        trail = np.concatenate([trail[:shared], np.arange(count, count + added, dtype=np.int32)])
        ids.append(paths[path][shared:])
        depth.append(np.arange(shared, shared + added, dtype=np.int32))
        places[path], previous, count = trail, paths[path], count + added
    end_T[trail] = count - 1
    return TokenTree(np.concatenate(ids), end_T[:count], np.concatenate(depth), tuple(places))


def cut_at_subtrees(paths: Sequence[Ints], most_tokens: int) -> list[list[int]]:
    """Groups of sequences whose trees hold at most so many tokens each, a single longer sequence apart.

    Neighbours of the depth-first order stay together: what two groups have in common, each holds again.
    """
    groups: list[list[int]] = []
    tokens, previous = 0, _NOTHING
    for path in _sorted(paths):
        added = len(paths[path]) - common_prefix(previous, paths[path])
        if groups and tokens + added <= most_tokens:
            groups[-1].append(path)
            tokens += added
        else:
            groups.append([path])
            tokens = len(paths[path])
        previous = paths[path]
    return groups


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of pieces that are together at most `width` long, a single longer piece apart: longest first, each into the
    row that it fills best (best-fit decreasing: at most 11/9 of the fewest rows, and one more)."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for piece in sorted(range(len(lengths)), key=lambda piece: (-lengths[piece], piece)):
        place = bisect_left(room, (lengths[piece], 0))
        if place < len(room):
            left, row = room.pop(place)
            rows[row].append(piece)
        else:
            left, row = width, len(rows)
            rows.append([piece])
        insort(room, (left - lengths[piece], row))
    return rows


def common_prefix(left: Ints, right: Ints) -> int:
    """Number of tokens on which both agree from the start."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length


_NOTHING: Ints = np.zeros(0, dtype=np.int32)


def _sorted(paths: Sequence[Ints]) -> list[int]:
    return sorted(range(len(paths)), key=lambda path: (paths[path].tolist(), path))
