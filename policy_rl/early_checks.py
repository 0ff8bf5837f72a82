"""Check what the configuration alone can show to be invalid, before engines, trainer or an earlier stage start."""

from __future__ import annotations

from policy_rl.config import RLConfig
from policy_rl.metrics import metric_names
from policy_rl.monitor.alarms import check_alarms
from policy_rl.rewards.outcome import load_function
from policy_rl.rollouts.pool import check_sampling


def check_early(config: RLConfig) -> None:
    """Raise ConfigError for an invalid configuration.

    Checked are sampling that the trainer cannot reproduce, reward functions that cannot be imported, and alarms on
    metrics that the run does not log.
    """
    check_sampling(config.sampling)
    for entry in config.rewards.functions:
        load_function(entry.path)
    check_alarms(config.monitor, metric_names(config))
