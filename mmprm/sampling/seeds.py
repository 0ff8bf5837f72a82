"""Derive seeds from the content of requests, so that a rerun gives the same samples in any order and on any engine."""

from __future__ import annotations

import hashlib
import json


def derive_seed(run_seed: int, problem_id: str, prefix: str, first_sample: int) -> int:
    """Derive a request's seed in [0, 2^62) from the run's seed, the problem, the prefix and its first sample's number.

    Sample i of the request uses seed + i.
    """
    key = json.dumps([run_seed, problem_id, prefix, first_sample])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 2


def environment_seed(run_seed: int, problem_id: str) -> int:
    """Derive the seed in [0, 2^32) with which a problem's environment is reset, the same for all of its episodes."""
    return derive_seed(run_seed, problem_id, "environment", 0) >> 30
