"""Seeds from content, so that a rerun asks for the same samples, in whatever order and on whatever engine."""

from __future__ import annotations

import hashlib
import json


def derive_seed(run_seed: int, problem_id: str, prefix: str, first_draw: int) -> int:
    """A seed in [0, 2^62) for the draws first_draw, first_draw + 1, … from `prefix`; draw i of the request adds i."""
    key = json.dumps([run_seed, problem_id, prefix, first_draw])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 2
