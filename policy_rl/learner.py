"""Learn from the groups of a training step: compute metrics and advantages, and update the policy.

    learner = Learner(config, trainer, collector, aggregate, trees, refresh)
    samples, metrics = await learner.learn(step, collected, pool.version, seconds)

This covers parts 2 and 3 of a step (see policy_rl.loop).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmprm.errors import TrainingError
from mmprm.training.checkpoints import newest
from policy_rl.algorithms.advantages import ESTIMATORS
from policy_rl.algorithms.samples import Aggregate, add_advantages, draft, kept_mask
from policy_rl.algorithms.tree_samples import add_tree_advantages, draft_continuations
from policy_rl.collector import Collector
from policy_rl.config import RLConfig
from policy_rl.graded import GradedGroup
from policy_rl.metrics import (
    Timed,
    describe_branches,
    describe_episodes,
    describe_groups,
    kept_responses,
    merge_updates,
)
from policy_rl.monitor.alarms import hacking_metrics
from policy_rl.monitor.phrases import phrase_metrics
from policy_rl.rewards.prm_refresh import PrmRefresh
from policy_rl.rollouts.collected import Collected
from policy_rl.rollouts.curriculum import update_count
from policy_rl.rollouts.tree_store import TreeStore
from policy_rl.run_folder import checkpoints_of
from policy_rl.trainer.batch import minibatches
from policy_rl.trainer.protocol import TrainerLike
from policy_rl.trainer.rows import join_rows, split_rows
from policy_rl.types import TrainingSample

EMPTY_STEPS = 5
"""The run fails after this many consecutive steps with nothing to train on."""


class Learner:
    """Updates the policy on the groups of each step. See Loop for the arguments."""

    def __init__(
        self,
        config: RLConfig,
        trainer: TrainerLike,
        collector: Collector,
        aggregate: Aggregate | None,
        trees: TreeStore | None,
        refresh: PrmRefresh | None,
    ) -> None:
        self._config, self._trainer, self._collector = config, trainer, collector
        self._trees, self._refresh = trees, refresh
        self._settings, self._tree_settings = config.advantage_settings(aggregate), config.tree_settings()
        self._needs_ref = config.trainer.loss.kl.coefficient > 0
        compares = self._settings.kl_in_reward > 0 or self._settings.distillation is not None
        self._needs_old = config.batch.optimizer_steps > 1 or config.has_critic or compares
        self._empty = 0
        """Number of consecutive steps with nothing to train on."""
        self._progress = 0.0
        """Completed fraction of the run."""

    def state(self) -> dict[str, Any]:
        """Return the learner's state for a checkpoint."""
        return {"empty": self._empty, "progress": self._progress}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state`."""
        self._empty, self._progress = state["empty"], state["progress"]

    async def learn(
        self, step: int, collected: Collected, version: int, seconds: Counter[str]
    ) -> tuple[list[TrainingSample], dict[str, float]]:
        """Update the policy on a step's groups, and return the samples that were trained on and the step's metrics.

        `version` is that of the policy before the update. `seconds` receives the durations of old and update. Raises
        TrainingError after EMPTY_STEPS consecutive steps with nothing to train on.
        """
        groups = collected.groups
        metrics = describe_groups(collected, version)
        if self._config.rollouts.branching is not None:
            metrics |= describe_branches(groups, collected.branch_tokens)
            metrics |= self._keep_trees(groups)
        if self._config.environment is not None:
            metrics |= describe_episodes(kept_responses(groups))
        metrics |= hacking_metrics(groups, self._config.step_format, self._collector.prefill)
        metrics |= phrase_metrics(groups, self._config.monitor.phrases)
        samples, advantage_metrics = await self._samples(groups, seconds) if groups else ([], {})
        updates = await self._update(step, samples, collected.progress)
        seconds["update"] = sum(update["seconds"] for update in updates)
        waits = collected.passed > 0 and not groups  # for enough groups to fill an update
        self._count_empty(step, collected, not updates and not waits)
        return samples, metrics | advantage_metrics | merge_updates(updates)

    def _keep_trees(self, groups: Sequence[GradedGroup]) -> dict[str, float]:
        """Store the trees of the groups that branch, and return the metrics of the PRM on them."""
        labeled = [group for group in groups if self._collector.may_branch(group)]
        if self._trees is not None:
            self._trees.write(labeled)
        return {} if self._refresh is None else self._refresh.see(labeled)

    async def _update(self, step: int, samples: Sequence[TrainingSample], end: float) -> list[dict[str, float]]:
        """Run the optimizer updates of a step and return their metrics.

        The learning-rate schedule follows the completed fraction of the run, which grows over these updates from its
        previous value toward `end`.
        """
        batch, begin, self._progress = self._config.batch, self._progress, end
        count = update_count(len({each.group for each in samples}), batch.prompts, batch.updates)
        parts = minibatches(samples, count, f"{self._config.seed}/{step}", batch.epochs)
        updates = []
        for number, part in enumerate(parts):
            progress = begin + (end - begin) * number / len(parts)
            updates.append(await asyncio.to_thread(self._trainer.update, split_rows(part), progress))
        return updates

    async def _samples(
        self, groups: Sequence[GradedGroup], seconds: Counter[str]
    ) -> tuple[list[TrainingSample], dict[str, float]]:
        """Return the training samples of groups, with advantages, and the metrics of their advantages."""
        kept_PK = kept_mask(groups, ESTIMATORS[self._config.advantage.estimator].least)
        samples, tree = draft(groups, kept_PK), self._tree_settings
        if tree is not None and tree.train:
            samples += draft_continuations(groups, kept_PK)
        if self._needs_old or self._needs_ref:
            with Timed(seconds, "old"):
                rows = await asyncio.to_thread(self._trainer.log_probs, split_rows(samples), not self._needs_old)
            samples = join_rows(samples, rows)
        if tree is not None:
            return add_tree_advantages(groups, kept_PK, samples, tree)
        return add_advantages(groups, kept_PK, samples, self._settings)

    def _count_empty(self, step: int, collected: Collected, empty: bool) -> None:
        """Count consecutive steps with nothing to train on; raise TrainingError after EMPTY_STEPS of them."""
        self._empty = self._empty + 1 if empty else 0
        if self._empty == EMPTY_STEPS:
            refusal = f"; the first refusal: {collected.refusal}" if collected.refusal else ""
            last = newest(checkpoints_of(self._config))
            raise TrainingError(
                f"step {step}: {EMPTY_STEPS} consecutive steps had nothing to train on; this one: {collected.reasons}"
                f"{refusal}. Widen filter.low and filter.high, check the gold answers and step_format, raise "
                "sampling.max_tokens if responses are truncated, or choose problems that the policy sometimes solves "
                "(mmprm filter); " + (f"the last checkpoint is {last}" if last else "there is no checkpoint")
            )
