"""Test the order of token sequences in a tree."""

from __future__ import annotations

import random

import numpy as np

from mmprm.backbone.token_tree import lexicographic_key


def test_keys_compare_like_the_sequences() -> None:
    rng = random.Random(0)
    paths = [[rng.choice((0, 1, 255, 256, 2**16, 2**31 - 1)) for _ in range(rng.randint(0, 4))] for _ in range(500)]
    assert sorted(paths) == sorted(paths, key=lambda path: lexicographic_key(np.array(path, dtype=np.int32)))
