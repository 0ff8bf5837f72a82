from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm.errors import ConfigError
from mmprm.scoring.aggregate import AGGREGATORS, MIN_PROBABILITY, aggregator, vote_weight


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("min", 0.2),
        ("last", 0.5),
        ("mean", 0.5),
        ("max", 0.8),
        ("product", 0.08),
        ("sum_log", math.log(0.08)),
        ("sum_log_odds", 0.0),  # odds 4, 1/4, 1
        ("mean_odds", 1.75),
    ],
)
def test_worked_numbers(name: str, expected: float) -> None:
    assert aggregator(name)([0.8, 0.2, 0.5]) == pytest.approx(expected)


def test_every_aggregator_has_a_worked_number() -> None:
    worked = {name for name, _ in test_worked_numbers.pytestmark[0].args[1]}
    assert worked == set(AGGREGATORS)


def test_certain_scores_stay_finite() -> None:
    assert aggregator("sum_log")([0.0]) == pytest.approx(math.log(MIN_PROBABILITY))
    assert aggregator("sum_log_odds")([0.0, 1.0]) == pytest.approx(0.0, abs=1e-9)
    assert aggregator("mean_odds")([1.0]) == pytest.approx((1 - MIN_PROBABILITY) / MIN_PROBABILITY)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="aggregator='median' is not an aggregator; set one of min, last"):
        aggregator("median")


@pytest.mark.parametrize("name", AGGREGATORS)
@given(left=st.lists(st.floats(0, 1), min_size=1, max_size=60), right=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_vote_weights_are_shares_in_the_same_order(name: str, left: list[float], right: list[float]) -> None:
    low, high = sorted([aggregator(name)(left), aggregator(name)(right)])
    assert 0 <= vote_weight(name, low) <= vote_weight(name, high) <= 1
