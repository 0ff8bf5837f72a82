"""Check that the sizes of groups, updates and responses of an RL run are compatible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy_rl.algorithms.advantages import ESTIMATORS

if TYPE_CHECKING:
    from policy_rl.config import RLConfig


def check_group_sizes(config: RLConfig) -> None:
    """Raise ValueError if groups are too small for the baselines of their samples or steps."""
    estimator, credit = config.advantage.estimator, config.step_credit
    least = ESTIMATORS[estimator].least
    sizes = {"batch.group_size": config.batch.group_size}
    sizes |= {f"schedule.{number}.group_size": phase.group_size for number, phase in enumerate(config.schedule)}
    for key, size in sizes.items():
        if size < least:
            other = "" if credit is not None and credit.mode == "value" else ", or advantage.estimator=reinforce_pp"
            raise ValueError(
                f"{key}={size} must be at least {least}: {estimator} uses the other samples of a group as its "
                f"baseline; try 8{other}"
            )
        if size < 2 and credit is not None and credit.compares:
            raise ValueError(
                f"{key}={size} must be at least 2: credit.mode={credit.mode} compares a response's steps with those of "
                "its group; try 8, or set credit.baseline=none and leave out credit.normalize_steps"
            )


def check_updates(config: RLConfig) -> None:
    """Raise ValueError if the groups of a step cannot be shared among its updates."""
    batch = config.batch
    if batch.updates > batch.prompts:
        raise ValueError(
            f"batch.updates={batch.updates} must not exceed batch.prompts={batch.prompts}: each update takes whole "
            "groups; lower batch.updates or raise batch.prompts"
        )
    if config.filter is not None and batch.prompts % batch.updates:
        raise ValueError(
            f"batch.prompts={batch.prompts} must be a multiple of batch.updates={batch.updates} with a filter: all "
            "updates take the same number of groups; change either"
        )


def check_evaluation_length(config: RLConfig) -> None:
    """Raise ValueError if answers to held-out problems may be shorter than those of the schedule."""
    longest = max((phase.max_tokens for phase in config.schedule), default=0)
    if config.held_out is not None and longest > config.sampling.max_tokens:
        raise ValueError(
            f"sampling.max_tokens={config.sampling.max_tokens} limits the answers to held_out problems and must be at "
            f"least the schedule's largest max_tokens, {longest}; set it to {longest}"
        )
