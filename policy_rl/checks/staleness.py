"""Check that training on responses of older weights is compatible with the other settings of an RL run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy_rl.config import RLConfig


def check_staleness(config: RLConfig) -> None:
    """Raise ValueError if the run samples ahead or carries groups over in a way that other settings do not allow."""
    ahead = {
        "one_step_ahead=true": config.one_step_ahead,
        f"max_staleness={config.max_staleness}": config.max_staleness > 0,
    }
    for setting, is_set in {"filter": config.filter is not None, **ahead}.items():
        if is_set and config.trainer.loss.importance_cap is None:
            raise ValueError(
                f"{setting.removesuffix('=true')} trains on responses of older weights, which requires truncated "
                "importance weights; set trainer.loss.importance_cap=2"
            )
    for setting, is_set in ahead.items():
        if is_set and config.rollouts.colocated:
            raise ValueError(
                f"{setting} needs engines on their own GPUs; set rollouts.colocated=false, or leave "
                f"{setting.partition('=')[0]} out"
            )
    if all(ahead.values()):
        raise ValueError(
            f"max_staleness={config.max_staleness} cannot be combined with one_step_ahead=true, which samples one step "
            "ahead without interrupting responses; leave one of them out"
        )
    if config.max_staleness and config.weights.transport not in ("auto", "file"):
        raise ValueError(
            f"max_staleness={config.max_staleness} cannot be combined with weights.transport="
            f"{config.weights.transport}, which changes the weights of engines while they sample; leave "
            "weights.transport out, or set it to file"
        )
    if config.max_staleness and config.environment is not None:
        raise ValueError(
            f"max_staleness={config.max_staleness} cannot be combined with environment, whose episodes cannot be "
            "interrupted; set one_step_ahead=true instead"
        )
    if config.max_staleness and config.rollouts.branching is not None:
        raise ValueError(
            f"max_staleness={config.max_staleness} cannot be combined with rollouts.branching, whose continuations "
            "must have the same weights as the responses; leave one of them out"
        )
