"""Test the keys and defaults of the trainer's configuration."""

from __future__ import annotations

import pytest

from mmprm.config import build
from mmprm.errors import ConfigError
from policy_rl.trainer.config import TrainerConfig


def test_critic_defaults() -> None:
    critic = TrainerConfig().critic
    assert (critic.learning_rate, critic.warmup_updates) == (1e-5, 10)


def test_updates_have_no_keys_of_supervised_training() -> None:
    with pytest.raises(ConfigError, match=r"optimization\.batch_size does not exist"):
        build(TrainerConfig, {"optimization": {"batch_size": 8}})


def test_defaults_of_updates() -> None:
    settings = build(TrainerConfig, {"optimization": {"precision": "fp32"}})
    assert (settings.optimization.final_learning_rate, settings.optimization.warmup) == (1.0, 0.0)
    assert build(TrainerConfig, settings.model_dump()) == settings
