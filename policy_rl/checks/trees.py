"""Check that credit from continuations is compatible with the other settings of an RL run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy_rl.config import RLConfig

_UNDECIDED = "rollouts.branching.choose=undecided"


def check_tree_credit(config: RLConfig) -> None:
    """Raise ValueError if rollouts.branching and credit.source are incompatible with each other or other settings."""
    branching = config.rollouts.branching
    if branching is None and not config.has_tree_credit:
        return
    if not config.has_tree_credit:
        _check_labels(config)
        return
    source = f"credit.source={config.credit.source}"
    if branching is None:
        raise ValueError(f"{source} needs continuations; set rollouts.branching.continuations=4, or credit.source=prm")
    uses_scores = {
        source: config.credit.source == "both",
        _UNDECIDED: branching.choose == "undecided",
    }
    for key, is_set in uses_scores.items():
        if is_set and config.process is None:
            raise ValueError(f"{key} needs the scores of a process reward model; set process.scorer.prm")
        if is_set and config.process.scorer.judge is not None:
            raise ValueError(
                f"{key} cannot be combined with process.scorer.backend=judge: a judge reads the whole response, so its "
                "score of a step depends on what follows it, which biases the credit; set process.scorer.prm, or "
                "credit.source=tree and rollouts.branching.choose=surprisal"
            )
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


def _check_labels(config: RLConfig) -> None:
    """Raise ValueError if continuations serve neither credit nor labels."""
    if not config.rollouts.branching.store:
        raise ValueError(
            "rollouts.branching needs a use for the continuations; set credit.source=tree, or rollouts.branching.store="
            "true to keep them as labels, or leave rollouts.branching out"
        )
    if config.rollouts.branching.choose == "undecided" and config.process is None:
        raise ValueError(f"{_UNDECIDED} needs the scores of a process reward model; set process.scorer.prm")


def check_refresh(config: RLConfig) -> None:
    """Raise ValueError if the process reward model is to be retrained without trees to train it on."""
    if config.process is None or config.process.refresh is None:
        return
    if config.rollouts.branching is None or not config.rollouts.branching.store:
        raise ValueError(
            "process.refresh retrains the PRM on the trees of the run; set rollouts.branching.store=true and "
            "rollouts.branching.groups=0.2"
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
