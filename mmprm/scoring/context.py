"""The longest solution that a PRM can read."""

from __future__ import annotations

from typing import Any

from mmprm.errors import DataError
from mmprm.types import Solution


def context_length(config: Any) -> int:
    """Positions of a transformers configuration."""
    return config.get_text_config().max_position_embeddings


def check_length(solution: Solution, tokens: int, limit: int) -> None:
    if tokens > limit:
        raise DataError(
            f"problem {solution.problem.id}: a solution of {len(solution.steps)} steps has {tokens} tokens, the PRM "
            f"reads at most {limit}; shorten it or leave it out"
        )
