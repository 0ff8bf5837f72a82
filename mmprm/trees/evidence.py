"""Which rollouts are evidence for the value of a prefix.

A state, a prefix that was drawn from, is labelled by its own rollouts alone: it was asked about because of a wrong
rollout that runs through it, so what ran through it before was chosen by its outcome. But the rollouts of one batch,
drawn together, chose the prefixes behind their state before they ended. So a prefix is labelled by the first batch that
alone sent `StoppingRule.shared` rollouts through it, if that was before it was drawn from: a number that does not
depend on how they ended. It keeps that label if it is drawn from later, which is only done where they all failed: the
label of its own rollouts would then stand for those prefixes alone whose first ones were unlucky. Several batches are
not pooled, since the later ones are drawn because of how the earlier ones ended.

One selection is left, as in every such search: a problem is only searched if the rollouts from its root are neither all
right nor all wrong. A root of value v, given that it is searched, has too many right ones by the factor
1 / (1 − (1 − v)^K), and so have the prefixes that the root's rollouts label: where a problem is hardly ever solved, by
more than 0.03.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mmprm.trees.stopping import StoppingRule, unbiased
from mmprm.types import Counts, Rollout, Steps, Tree, Verdict

Tally = list[int]
"""Numbers of rollouts by Verdict."""


def passing(steps: Steps, rollout: Rollout) -> Iterator[Steps]:
    """Each longer prefix that a rollout drawn from `steps` runs through, short of its last step."""
    return (steps + rollout.steps[:length] for length in range(1, len(rollout.steps)))


def tally_passing(steps: Steps, rollouts: Iterable[Rollout]) -> dict[Steps, Tally]:
    """Verdicts of rollouts drawn from `steps`, by each longer prefix that they run through."""
    tallies: dict[Steps, Tally] = {}
    for rollout in rollouts:
        for prefix in passing(steps, rollout):
            tallies.setdefault(prefix, [0, 0, 0])[rollout.verdict] += 1
    return tallies


def counts_of(tally: Tally) -> Counts:
    return Counts(tally[Verdict.CORRECT], tally[Verdict.INCORRECT], tally[Verdict.UNKNOWN])


def evidence(tree: Tree, rule: StoppingRule) -> dict[Steps, Counts]:
    """The evidence for every prefix of the tree that has enough: states with a known verdict, their values freed from
    the bias of the stopping rule, and other prefixes, unless the problem is always or never solved."""
    found = {node.steps: unbiased(node.batches, rule) for node in tree.nodes}
    if rule.shared is not None and tree.nodes and tree.nodes[0].counts.value not in (None, 0.0, 1.0):
        found |= shared_labels(tree, rule.shared)
    return {steps: counts for steps, counts in found.items() if counts.known}


def count_labels(tree: Tree, rule: StoppingRule) -> int:
    """Prefixes, short of complete solutions, with evidence."""
    return sum(bool(steps) for steps in evidence(tree, rule))


def shared_labels(tree: Tree, enough: int) -> dict[Steps, Counts]:
    """Prefix → counts of the rollouts of the first batch that alone sent `enough` of known verdict through it, unless
    it was a state before."""
    found: dict[Steps, Counts] = {}
    states: set[Steps] = set()
    for node in tree.nodes:
        states.add(node.steps)
        first = node.batches[0].known + node.batches[0].unknown
        for prefix, tally in tally_passing(node.steps, node.rollouts[:first]).items():
            if prefix not in states and tally[Verdict.CORRECT] + tally[Verdict.INCORRECT] >= enough:
                found.setdefault(prefix, counts_of(tally))
    return found
