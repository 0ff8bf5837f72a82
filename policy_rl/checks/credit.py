"""Check that an RL run has something to reward, and an estimator that its credit can be combined with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy_rl.config import RLConfig


def check_credit(config: RLConfig) -> None:
    """Raise ValueError if the credit lacks a process reward model or a critic, or critic settings lack a critic."""
    if config.credit is not None and config.process is None and config.credit.source == "prm":
        raise ValueError(
            "credit assigns the scores of a process reward model, but process is not set; set process.scorer.prm or "
            "credit.source=tree, or leave credit out"
        )
    mode = config.step_credit.mode if config.step_credit else None
    if config.has_critic and mode not in (None, "scalar", "step_gae"):
        raise ValueError(
            f"credit.mode={mode} cannot be combined with advantage.estimator=gae, which computes returns itself; use "
            "credit.mode=step_gae or scalar"
        )
    if mode == "step_gae" and not config.has_critic:
        raise ValueError(
            "credit.mode=step_gae needs a critic; set advantage.estimator=gae, or use credit.mode=soft_min"
        )
    if mode == "value":
        _check_values(config)
    elif config.advantage.lam != 1 and not config.has_critic:
        raise ValueError(
            f"advantage.lam={config.advantage.lam} has no effect with advantage.estimator={config.advantage.estimator}"
            "; set advantage.estimator=gae or credit.mode=value, or leave it out"
        )
    critic = config.trainer.critic
    if critic.model_fields_set and not config.has_critic:
        key = min(critic.model_fields_set)
        raise ValueError(
            f"trainer.critic.{key}={getattr(critic, key)} needs a critic, which advantage.estimator="
            f"{config.advantage.estimator} does not have; use gae, or leave it out"
        )


def _check_values(config: RLConfig) -> None:
    """Raise ValueError if step scores cannot serve as values."""
    if config.process.scorer.judge is not None:
        raise ValueError(
            "credit.mode=value cannot be combined with process.scorer.backend=judge: a judge reads the whole response, "
            "so its score of a step depends on what follows it, which biases the credit; set process.scorer.prm"
        )
    estimator = config.advantage.estimator
    others = {f"advantage.estimator={estimator}": estimator != "rloo", "adora": config.adora is not None}
    for setting, is_set in others.items():
        if is_set:
            raise ValueError(
                f"{setting} cannot be combined with credit.mode=value, which replaces the outcome's advantage; leave "
                "it out"
            )
    if not config.rewards.accuracy_weight:
        raise ValueError(
            "credit.mode=value needs the accuracy, which the scores estimate; set rewards.accuracy_weight=1, or use "
            "credit.mode=soft_min"
        )


def check_rewards(config: RLConfig) -> None:
    """Raise ValueError if nothing is rewarded."""
    # With credit from continuations, a PRM is only a prior or a rule for branching.
    if config.rewards.is_empty and config.step_credit is None and config.trainer.distillation is None:
        others = "" if config.has_tree_credit else ", process or trainer.distillation"
        raise ValueError(
            "rewards.accuracy_weight=0 leaves nothing to reward; raise it, or set rewards.format, rewards.functions, "
            f"rewards.length{others}"
        )
