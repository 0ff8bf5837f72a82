"""Priorities of the search, as formulas. Source: OmegaPRM (arXiv 2406.06592), with the settings of MM-PRM."""

from __future__ import annotations

import math


def q(value: float, words: int, alpha: float, beta: float, length_scale: float) -> float:
    """Q(s, r) = α^(1 − MC(s)) · β^(len(r) / L), in (0, 1]: high for a wrong rollout r, short, from a state s whose
    rollouts mostly end right. `value` is MC(s) in [0, 1]; `words` and `length_scale` (L) count words."""
    return alpha ** (1.0 - value) * beta ** (words / length_scale)


def u(total_visits: int, visits: int, c_puct: float) -> float:
    """U(s) = c_puct · sqrt(Σ N) / (1 + N(s)): the PUCT bonus of a state visited seldom; Σ N runs over all states."""
    return c_puct * math.sqrt(total_visits) / (1 + visits)
