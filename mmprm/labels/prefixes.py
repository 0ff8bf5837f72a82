"""Identify prefixes of solutions by short hashes, to label each prefix of a problem only once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from mmprm.types import Steps


def prefix_keys(problem_id: str, steps: Steps) -> Iterator[bytes]:
    """Yield a hash of (problem, prefix) for the prefixes with 1, 2, … steps."""
    digest = hashlib.blake2b(problem_id.encode(), digest_size=12)
    for step in steps:
        digest.update(f"\0{step}".encode())
        yield digest.digest()
