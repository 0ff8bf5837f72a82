"""Test the defaults of the credit configuration, its names, and the combinations of keys that it refuses."""

from __future__ import annotations

from typing import get_args

import pytest

from mmprm.config import build
from mmprm.errors import ConfigError
from policy_rl.algorithms.baselines import BASELINES
from policy_rl.algorithms.credit import GATES, MODES, STEP_RETURNS, TRANSFORMS
from policy_rl.algorithms.credit_config import DENSE, CreditConfig


def test_default_is_soft_min_with_a_baseline_by_step_index() -> None:
    config = CreditConfig()
    assert (config.mode, config.baseline, config.gate, config.weight) == ("soft_min", "step_index", "none", 1.0)


def test_configuration_names_are_those_of_the_tables() -> None:
    fields = CreditConfig.model_fields
    tables = (("mode", MODES), ("transform", TRANSFORMS), ("gate", GATES), ("baseline", BASELINES))
    for name, table in tables:
        assert set(get_args(fields[name].annotation)) == set(table)
    assert tuple(STEP_RETURNS) == DENSE


@pytest.mark.parametrize(
    "values",
    [
        {"normalize_steps": True},
        {"transform": "clip"},
        {"eta": 0.5},
        {"mode": "return_to_go", "eta": 0.5},
        {"mode": "strict_min", "temperature": 0.2},
        {"mode": "scalar", "baseline": "step_index"},
        {"mode": "step_gae", "baseline": "pure_tokens"},
        {"mode": "step_gae", "per_source": True},
        {"mode": "value", "baseline": "none"},
        {"mode": "value", "gate": "correct"},
        {"mode": "value", "weight": 2.0},
        {"mode": "progress", "calibrate": True},
    ],
)
def test_options_of_other_modes_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match=r"to one of (return_to_go|soft_min|scalar|value)|transform=clip"):
        build(CreditConfig, values)


@pytest.mark.parametrize(
    ("values", "instead"),
    [
        ({"token_baseline": True}, "token_baseline=True does not exist; set credit.baseline=pure_tokens"),
        ({"token_baseline": False}, "token_baseline=False does not exist; set credit.baseline=none"),
        (
            {"mode": "strict_min", "per_source": True},
            "mode=strict_min, for which PRIME's baseline is credit.baseline=prime_steps",
        ),
        ({"per_source": True}, "mode=soft_min, for which PRIME's baseline is credit.baseline=prime_steps"),
    ],
)
def test_baselines_under_other_keys_are_refused_with_the_key_to_set(values: dict, instead: str) -> None:
    with pytest.raises(ConfigError, match=instead):
        build(CreditConfig, values)
    assert build(CreditConfig, {"mode": "scalar", "per_source": True}).per_source
