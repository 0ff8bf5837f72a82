"""Migrate the stored state of runs from mmprm 0.1 to the current format."""

from __future__ import annotations

from typing import Any

from mmprm.config import RENAMED
from mmprm.sampling.config import WholeDistributionConfig
from policy_rl.algorithms.advantages import AdvantageConfig
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.losses import LossConfig
from policy_rl.rewards.outcome import RewardConfig
from policy_rl.rollouts.config import BranchingConfig
from policy_rl.trainer.config import UpdateConfig


def current_run_key(stored: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Convert a resume key from a checkpoint to the current format. `here` is the current run's resume key."""
    estimator = AdvantageConfig.model_validate(here["advantage"])
    advantage = dict(stored["advantage"])
    if advantage.get("whiten") == estimator.whitens:  # version 0.1 always set it; null means the estimator's default
        advantage["whiten"] = here["advantage"]["whiten"]
    return stored | {
        "sampling": {key: stored["sampling"][key] for key in WholeDistributionConfig.model_fields},
        "advantage": advantage,
        "batch": {"epochs": 1} | stored["batch"],
        "max_staleness": stored.get("max_staleness", 0),
        "rollouts": _rollouts_key(stored.get("rollouts", {})),
        "process": stored["process"] and {"refresh": None} | stored["process"],
        "credit": stored["credit"] and CreditConfig().model_dump(mode="json") | stored["credit"],
        "rewards": RewardConfig().model_dump(mode="json", exclude={"timeout_seconds"}) | stored["rewards"],
        "trainer": current_trainer_key(stored["trainer"], here["trainer"], estimator.estimator == "gae"),
    }


def _rollouts_key(stored: dict[str, Any]) -> dict[str, Any]:
    branching = stored.get("branching")
    return {"branching": branching and BranchingConfig().model_dump(mode="json") | branching}


def current_trainer_key(stored: dict[str, Any], here: dict[str, Any], critic: bool) -> dict[str, Any]:
    """Convert trainer settings from a checkpoint to the current format. `here` holds the current settings.

    Settings that do not need to match take this run's value: those of the critic if there is none, and
    `float32_logits`, which only makes log-probabilities more accurate.
    """
    kept = {key: value for key, value in stored["optimization"].items() if key in UpdateConfig.model_fields}
    value_head = {"warmup_updates": 0} | stored["critic"]
    if value_head["learning_rate"] is None:  # the policy's rate, which may change
        value_head["learning_rate"] = here["critic"]["learning_rate"]
    return (
        {"float32_logits": here["float32_logits"]}
        | stored
        | {
            "loss": LossConfig().model_dump(mode="json") | stored["loss"],
            "optimization": {"learning_rate_decay": "cosine"} | kept,
            "critic": value_head if critic else here["critic"],
        }
    )


def current_state(extra: dict[str, Any]) -> dict[str, Any]:
    """Convert the RL loop's state from a checkpoint to the current format.

    Version 0.1 did not store the completed fraction of the run; without a filter, it is the fraction of completed
    steps.
    """
    if "progress" in extra:
        return extra | {"pending": _pending_by_step(extra["pending"], extra["step"])}
    step, total, pending = extra["step"], extra["identity"]["total_steps"], extra["pending"]
    if pending is not None:
        pending = {"passed": len(pending["groups"]), "carried": 0, "progress": min(1.0, (step + 1) / total)} | pending
    noted = {_current_name(key): value for key, value in extra["noted"].items()}
    return extra | {"progress": step / total, "pending": _pending_by_step(pending, step), "noted": noted}


def _pending_by_step(pending: dict[str, Any] | None, step: int) -> dict[str, Any]:
    """Return the groups that were collected ahead, keyed by step; earlier versions stored only those of one step."""
    if pending is None:
        return {}
    return {str(step + 1): pending} if "groups" in pending else pending


def _current_name(key: str) -> str:
    return ".".join(RENAMED.get(part, part) for part in key.split("."))
