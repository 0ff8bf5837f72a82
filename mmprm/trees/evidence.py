"""Select the rollouts that determine the value of each prefix in a search tree.

A state (a prefix from which rollouts were sampled) is labeled only by its own rollouts. It was selected because an
incorrect rollout passes through it, so the rollouts that passed through it earlier were chosen by their outcome. The
rollouts of one batch, however, are sampled together, and the longer prefixes that they pass through are fixed before
any of them ends. Such a prefix is therefore labeled by the first single batch that sent at least
`StoppingRule.min_shared_rollouts` rollouts through it, unless the prefix was already a state. This criterion does not
depend on how the rollouts ended. The prefix keeps that label if it becomes a state later. That happens only if all of
those rollouts failed, so replacing the label would affect only the prefixes whose first rollouts were unlucky. Batches
are not pooled, because later ones are sampled depending on how earlier ones ended.

One selection effect remains, as in every such search: a problem is searched only if its root's rollouts are neither all
correct nor all incorrect. For a searched root of value v, the expected share of correct rollouts is inflated by the
factor 1 / (1 − (1 − v)^K). The same holds for the prefixes labeled by the root's rollouts. For problems that are hardly
ever solved, the bias exceeds 0.03.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mmprm.trees.stopping import StoppingRule, unbiased
from mmprm.types import Counts, Rollout, Steps, Tree, Verdict

VerdictTally = list[int]
"""Number of rollouts with each Verdict, indexed by the verdict."""


def passing(steps: Steps, rollout: Rollout) -> Iterator[Steps]:
    """Yield `steps` extended by the first 1, 2, … steps of a rollout, up to but not including its last step."""
    return (steps + rollout.steps[:length] for length in range(1, len(rollout.steps)))


def tally_passing(steps: Steps, rollouts: Iterable[Rollout]) -> dict[Steps, VerdictTally]:
    """For each prefix that rollouts from `steps` pass through (see `passing`), count the verdicts of those rollouts."""
    tallies: dict[Steps, VerdictTally] = {}
    for rollout in rollouts:
        for prefix in passing(steps, rollout):
            tallies.setdefault(prefix, [0, 0, 0])[rollout.verdict] += 1
    return tallies


def counts_of(tally: VerdictTally) -> Counts:
    """Convert a VerdictTally to Counts."""
    return Counts(tally[Verdict.CORRECT], tally[Verdict.INCORRECT], tally[Verdict.UNKNOWN])


def evidence(tree: Tree, rule: StoppingRule, min_shared_rollouts: int | None = None) -> dict[Steps, Counts]:
    """Return the verdict counts of every prefix in the tree that has enough evidence to be labeled.

    These are the states with at least one known verdict; their values are corrected for the bias of the stopping rule.
    The prefixes of `shared_labels` are added unless the problem is always or never solved. `min_shared_rollouts` is
    that of the rule, with which the tree was searched, unless it is given. If it is lower, it adds labels, but does not
    change those that the rule gives: the rollouts that were sampled from a state itself are more, and say more. The
    added labels are biased after a search: prefixes whose first rollouts all failed became states, so they are not
    among them.
    """
    found = {node.steps: unbiased(node.batches, rule) for node in tree.nodes}
    if tree.nodes and tree.nodes[0].counts.value not in (None, 0.0, 1.0):
        searched = rule.min_shared_rollouts
        enough = searched if min_shared_rollouts is None else min_shared_rollouts
        if searched is not None:
            found |= shared_labels(tree, max(searched, enough))
        if enough is not None and (searched is None or enough < searched):
            found = shared_labels(tree, enough) | found
    return {steps: counts for steps, counts in found.items() if counts.known}


def count_labeled_prefixes(tree: Tree, rule: StoppingRule) -> int:
    """Count the non-empty prefixes that have enough evidence to be labeled."""
    return sum(bool(steps) for steps in evidence(tree, rule))


def shared_labels(tree: Tree, enough: int) -> dict[Steps, Counts]:
    """Return the verdict counts of prefixes that are labeled by rollouts sampled from a shorter prefix.

    The counts of a prefix are those of the first single batch that sent at least `enough` rollouts of known verdict
    through it. A prefix that was already a state by then is skipped.
    """
    found: dict[Steps, Counts] = {}
    states: set[Steps] = set()
    for node in tree.nodes:
        states.add(node.steps)
        first = node.batches[0].known + node.batches[0].unknown
        for prefix, tally in tally_passing(node.steps, node.rollouts[:first]).items():
            if prefix not in states and tally[Verdict.CORRECT] + tally[Verdict.INCORRECT] >= enough:
                found.setdefault(prefix, counts_of(tally))
    return found
