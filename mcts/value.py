"""Compute the priority Q + U of search candidates. Source: OmegaPRM (arXiv 2406.06592), with MM-PRM's settings."""

from __future__ import annotations

import math


def q(value: float, words: int, alpha: float, beta: float, length_scale: float) -> float:
    """Return the exploitation term Q(s, r) = α^(1 − MC(s)) · β^(len(r) / L) of rollout r from state s, in (0, 1].

    Q is high for a short incorrect rollout from a state whose rollouts are mostly correct. `value` is MC(s), the Monte
    Carlo value of s in [0, 1]; `words` and `length_scale` (L) are numbers of words.
    """
    return alpha ** (1.0 - value) * beta ** (words / length_scale)


def u(total_visits: int, visits: int, c_puct: float) -> float:
    """Return the exploration term U(s) = c_puct · sqrt(Σ N) / (1 + N(s)), PUCT's bonus for a rarely visited state s.

    `visits` is N(s), the number of visits of s; `total_visits` is Σ N, their sum over all states.
    """
    return c_puct * math.sqrt(total_visits) / (1 + visits)
