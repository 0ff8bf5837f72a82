"""Check that an environment is compatible with the other settings of an RL run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy_rl.algorithms.turn_samples import GIGPO_ESTIMATORS

if TYPE_CHECKING:
    from policy_rl.config import RLConfig

OF_TURNS = ("environment", "gigpo")
"""Values of credit.source that need an environment."""


def check_environment(config: RLConfig) -> None:
    """Raise ValueError if settings of episodes are used without an environment, or others with one."""
    source = None if config.credit is None else config.credit.source
    if config.environment is None:
        _check_without(config, source)
        return
    if config.prompt.preset != "plain":
        raise ValueError(
            f"prompt.preset={config.prompt.preset} must be plain with an environment, whose observations are the "
            "prompt; set prompt.preset=plain, and prompt.user for instructions"
        )
    for setting, (is_set, why) in _unsupported(config).items():
        if is_set:
            raise ValueError(f"{setting} cannot be combined with an environment, {why}; leave it out")
    if source in OF_TURNS:
        _check_credit(config, source)


def _check_without(config: RLConfig, source: str | None) -> None:
    if source in OF_TURNS:
        raise ValueError(
            f"credit.source={source} needs the turns of episodes; set environment.path, or credit.source=prm"
        )
    if config.rewards.environment_weight:
        raise ValueError(
            f"rewards.environment_weight={config.rewards.environment_weight:g} needs an environment; set "
            "environment.path, or leave it out"
        )


def _check_credit(config: RLConfig, source: str) -> None:
    estimator = config.advantage.estimator
    allowed = GIGPO_ESTIMATORS if source == "gigpo" else ("rloo",)
    if estimator not in allowed:
        raise ValueError(
            f"advantage.estimator={estimator} must be {' or '.join(allowed)} with credit.source={source}, which "
            "compares turns; set advantage.estimator=rloo"
        )
    others = {"process": config.process is not None, "adora": config.adora is not None}
    for key, is_set in others.items():
        if is_set:
            raise ValueError(f"{key} cannot be combined with credit.source={source}; leave it out")


def _unsupported(config: RLConfig) -> dict[str, tuple[bool, str]]:
    """Map each unsupported setting to whether it is set, and the reason why it is unsupported."""
    branching, own_outcome = config.rollouts.branching, "which decides whether an episode succeeds"
    return {
        "rewards.format": (config.rewards.format is not None, "whose turns have no common format"),
        "rewards.accuracy=exact_label": (config.rewards.accuracy != "verdict", own_outcome),
        "schedule": (bool(config.schedule), "where environment.max_turn_tokens limits a turn"),
        "rollouts.branching.store": (bool(branching and branching.store), "whose trees mmprm labels could not replay"),
    }
