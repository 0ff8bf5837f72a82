"""Derive seeds from content, so that a rerun requests the same samples in any order and on any engine."""

from __future__ import annotations

import hashlib
import json


def derive_seed(run_seed: int, problem_id: str, prefix: str, first_sample: int) -> int:
    """Return a seed in [0, 2^62) for the samples first_sample, first_sample + 1, … from `prefix`.

    Sample i of the request uses seed + i.
    """
    key = json.dumps([run_seed, problem_id, prefix, first_sample])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 2
