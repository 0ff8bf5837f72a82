"""Test the Q and U terms of the search with worked numbers."""

from __future__ import annotations

import math

import pytest

from mcts.value import q, u


@pytest.mark.parametrize(
    ("value", "words", "expected"),
    [
        (1.0, 0, 1.0),
        (0.0, 0, 0.5),
        (0.5, 0, 0.70710678),
        (0.5, 2000, 0.63639610),
        (0.25, 1000, 0.5946035575 * 0.9486832981),
    ],
)
def test_q_by_hand(value: float, words: int, expected: float) -> None:
    assert q(value, words, alpha=0.5, beta=0.9, length_scale=2000) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("total", "visits", "expected"), [(0, 0, 0.0), (4, 0, 0.25), (4, 1, 0.125), (9, 2, 0.125), (200, 9, 0.1767766953)]
)
def test_u_by_hand(total: int, visits: int, expected: float) -> None:
    assert u(total, visits, c_puct=0.125) == pytest.approx(expected, abs=1e-9)


def test_order_of_two_states_swaps_with_the_total() -> None:
    """States with Q = 0.5, N = 0 and Q = 0.6, N = 1 tie if c·sqrt(Σ N)/2 = 0.1, which is at Σ N = 2.56 for c = 1/8."""

    def fresh_wins(total: float) -> bool:
        return 0.5 + u(total, 0, 0.125) > 0.6 + u(total, 1, 0.125)

    assert not fresh_wins(2)
    assert fresh_wins(3)
    assert math.isclose(0.5 + u(2.56, 0, 0.125), 0.6 + u(2.56, 1, 0.125))
