"""What a configuration alone tells: refused before engines, trainer or an earlier stage have cost anything."""

from __future__ import annotations

from policy_rl.config import RLConfig
from policy_rl.metrics import metric_names
from policy_rl.monitor.alarms import check_alarms
from policy_rl.rewards.outcome import load_function
from policy_rl.rollouts.pool import check_sampling


def check_early(config: RLConfig) -> None:
    """ConfigError for sampling that the trainer cannot follow, a reward function that cannot be imported, an alarm on
    what is not measured."""
    check_sampling(config.sampling)
    for entry in config.rewards.functions:
        load_function(entry.path)
    check_alarms(config.watch, metric_names(config))
