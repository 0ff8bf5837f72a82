"""What a configuration alone tells: refused before engines, trainer or an earlier stage have cost anything."""

from __future__ import annotations

from policy_rl.config import RLConfig
from policy_rl.rewards import load_function
from policy_rl.rollouts import check_sampling
from policy_rl.step_metrics import metric_names
from policy_rl.watch import check_alarms


def check_early(config: RLConfig) -> None:
    """ConfigError for sampling that the trainer cannot follow, a reward function that cannot be imported, an alarm on
    what is not measured."""
    check_sampling(config.sampling)
    for entry in config.rewards.functions:
        load_function(entry.path)
    check_alarms(config.watch, metric_names(config))
