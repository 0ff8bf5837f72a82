"""Keep the trees of a run in a store, so that `mmprm labels` can turn them into labels for a process reward model.

    store = TreeStore.open(folder, config)
    store.write(groups)          # the groups of a step whose responses branch

A problem's tree has the group's responses at its root, and the continuations of a prefix at that prefix. All rollouts
of a tree come from one policy version: when a problem is sampled again, its new tree replaces the earlier one.

The share of correct continuations is an unbiased estimate of a prefix's value, because the choice of prefixes does not
depend on outcomes (see policy_rl.rollouts.branching). The rest of the response itself is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmprm.steps import StepFormat
from mmprm.trees.database import STORE_NAME
from mmprm.trees.serialization import pack_batch
from mmprm.trees.stopping import StoppingRule
from mmprm.trees.store import Finished, Store
from mmprm.types import Batch, Rollout, Steps, Verdict
from policy_rl.graded import BranchedPrefix, GradedGroup, GradedResponse
from policy_rl.rewards.cutter import StepCutter

TREES_FOLDER = "trees"
"""Subfolder of a run's output with the store."""
REASON = "sampled by mmprm rl"


class TreeStore:
    """Writes the trees of a run. `cutter` splits the responses into steps."""

    def __init__(self, store: Store, cutter: StepCutter) -> None:
        self._store, self._cutter = store, cutter

    @classmethod
    def open(cls, output: Path, step_format: StepFormat, cutter: StepCutter) -> TreeStore:
        """Open the store of the run in `output` as its only writer, creating it if it does not exist."""
        # All rollouts of a prefix are sampled at once, so no stopping rule biases their mean.
        search = StoppingRule(false_negative_rate=0).model_dump(mode="json")
        folder = output / TREES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        store = Store.create_or_open(folder / STORE_NAME, {"step_format": step_format, "search": search})
        return cls(store, cutter)

    @property
    def path(self) -> Path:
        """Return the path of the store's database file."""
        return self._store.path

    @property
    def count(self) -> int:
        """Return the number of problems with a tree."""
        return len(self._store.ids("done"))

    def write(self, groups: Sequence[GradedGroup]) -> None:
        """Store the trees of groups, replacing earlier trees of the same problems.

        If there are several groups of a problem, the last one is stored.
        """
        if not groups:
            return
        groups = list({group.problem.id: group for group in groups}.values())
        self._store.add_problems(group.problem for group in groups)
        # Reasons are counted for the whole store, so they could not be replaced with the trees.
        batches = [replace(pack_batch(batch), reasons=()) for group in groups for batch in self.batches(group)]
        with self._store.transaction() as run:
            for group in groups:
                run("DELETE FROM batches WHERE problem = (SELECT number FROM problems WHERE id = ?)", group.problem.id)
                # If the run is killed before the new trees are appended, `count` must not include these problems.
                run("UPDATE problems SET status = 'open', reason = '' WHERE id = ?", group.problem.id)
        self._store.append(batches, [Finished(group.problem.id, "done", REASON) for group in groups])

    def batches(self, group: GradedGroup) -> list[Batch]:
        """Return the batches of a group's tree: its responses, and the continuations of each distinct prefix."""
        roots = tuple(self._rollout((), each, 0) for each in group.responses)
        by_prefix: dict[Steps, list[Rollout]] = {}
        for branch in group.branches:
            prefix = self._prefix(group, branch)
            rollouts = (self._rollout(prefix, each, branch.tokens) for each in branch.continuations)
            by_prefix.setdefault(prefix, []).extend(rollouts)
        found = [Batch(group.problem.id, prefix, 0, tuple(rollouts)) for prefix, rollouts in by_prefix.items()]
        return [Batch(group.problem.id, (), 0, roots), *found]

    def clear(self) -> None:
        """Remove all trees, because the run starts over."""
        with self._store.transaction() as run:
            run("DELETE FROM batches")
            run("UPDATE problems SET status = 'open', reason = ''")

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _prefix(self, group: GradedGroup, branch: BranchedPrefix) -> Steps:
        response = group.responses[branch.response].response
        _, step_of_token = self._cutter.cut(response)
        return self._cutter.verbatim(response)[: step_of_token[branch.tokens - 1] + 1]

    def _rollout(self, prefix: Steps, each: GradedResponse, given: int) -> Rollout:
        """Convert a response that begins with `prefix`, which has `given` tokens, to a rollout from there.

        It has no steps if it cannot be split, was truncated, or begins with other steps, but its verdict counts in any
        case.
        """
        steps, reason = self._cutter.verbatim(each.response), None
        if each.response.ends_within_step:
            steps, reason = prefix, "truncated"
        elif not steps or steps[: len(prefix)] != prefix:
            steps, reason = prefix, self._cutter.cut(each.response)[0].reason or "splits its prefix differently"
        text = self._cutter.whole_text(each.response).removeprefix("".join(prefix))
        tokens = len(each.response.token_ids) - given
        return Rollout(steps[len(prefix) :], _verdict(each), tokens, text, reason, each.grading.reason)


def _verdict(each: GradedResponse) -> Verdict:
    accuracy = each.reward.parts.get("accuracy")
    if accuracy is None or each.response.finish_reason == "abort":
        return Verdict.UNKNOWN
    return Verdict.CORRECT if each.correct else Verdict.INCORRECT
