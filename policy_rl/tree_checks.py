"""Check that credit from continuations is compatible with the other settings of an RL run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy_rl.config import RLConfig


def check_tree_credit(config: RLConfig) -> None:
    """Raise ValueError if rollouts.branching and credit.source are incompatible with each other or other settings."""
    branching = config.rollouts.branching
    if branching is None and not config.has_tree_credit:
        return
    if not config.has_tree_credit:
        raise ValueError(
            "rollouts.branching needs credit that uses the continuations; set credit.source=tree, or leave "
            "rollouts.branching out"
        )
    source = f"credit.source={config.credit.source}"
    if branching is None:
        raise ValueError(f"{source} needs continuations; set rollouts.branching.continuations=4, or credit.source=prm")
    uses_scores = {
        source: config.credit.source == "both",
        "rollouts.branching.choose=undecided": branching.choose == "undecided",
    }
    for key, is_set in uses_scores.items():
        if is_set and config.process is None:
            raise ValueError(f"{key} needs the scores of a process reward model; set process.scorer.prm")
    for setting, is_set in _unsupported(config).items():
        if is_set:
            raise ValueError(
                f"{setting} cannot be combined with {source}, which has its own baselines and token weights; leave it "
                "out"
            )
    if config.credit.source == "both" and not config.rewards.model_copy(update={"accuracy_weight": 0.0}).is_empty:
        raise ValueError(
            f"{source} needs a reward of accuracy alone, which is what the PRM's score estimates; leave out the other "
            "rewards, or set credit.source=tree"
        )


def _unsupported(config: RLConfig) -> dict[str, bool]:
    estimator, aggregation = config.advantage.estimator, config.trainer.loss.aggregation
    return {
        f"advantage.estimator={estimator}": estimator != "rloo",
        "advantage.whiten=true": bool(config.advantage.whiten),
        "adora": config.adora is not None,
        "trainer.distillation": config.trainer.distillation is not None,
        f"trainer.loss.aggregation={aggregation}": aggregation != "token_mean",
    }
