"""Validate an RL configuration before any engine, trainer or earlier training stage starts."""

from __future__ import annotations

from mmprm.sampling.config import sampling_of
from mmprm.user_function import load_function
from policy_rl.config import RLConfig
from policy_rl.metrics import metric_names
from policy_rl.monitor.alarms import check_alarms
from policy_rl.rewards.prm_refresh import check_refresh_files
from policy_rl.rollouts.config import check_sampling


def check_early(config: RLConfig) -> None:
    """Raise ConfigError for mistakes that can be detected without data or a model.

    These are a temperature at which all samples of a problem are identical, reward functions and surrogates that cannot
    be imported, alarms on metrics that the run does not log, and an invalid configuration of the PRM's training.
    """
    check_sampling(sampling_of(config.sampling))
    for entry in config.rewards.functions:
        load_function(entry.path, "functions.path")
    if ":" in config.trainer.loss.surrogate:
        load_function(config.trainer.loss.surrogate, "trainer.loss.surrogate")
    check_alarms(config.monitor, metric_names(config))
    if config.process is not None and config.process.refresh is not None:
        check_refresh_files(config.process.refresh)
