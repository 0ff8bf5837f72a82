"""Which rollouts are evidence for the value of a prefix.

A state, a prefix that was drawn from, is labelled by its own rollouts alone: it was asked about because of a wrong
rollout that runs through it, so what ran through it before was chosen by its outcome. But the rollouts of one batch,
drawn together, chose the prefixes behind their state before they ended. So a prefix that was never drawn from is
labelled by the first batch that alone sent `StoppingRule.shared` rollouts through it: a number that does not depend on
how they ended. Several batches are not pooled, since the later ones are drawn because of how the earlier ones ended.

One selection is left, as in every such search: a problem is only searched if the rollouts from its root are neither all
right nor all wrong. Where it is hardly ever solved, labels that the root's rollouts give are therefore too high, by up
to about 0.03 for values below 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mmprm.stopping import StoppingRule, unbiased
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
        found = _shared(tree, rule.shared) | found
    return {steps: counts for steps, counts in found.items() if counts.known}


def count_labels(tree: Tree, rule: StoppingRule) -> int:
    """Prefixes, short of complete solutions, with evidence."""
    return sum(bool(steps) for steps in evidence(tree, rule))


def _shared(tree: Tree, enough: int) -> dict[Steps, Counts]:
    """Prefix → counts of the rollouts of the first batch that alone sent `enough` of known verdict through it."""
    found: dict[Steps, Counts] = {}
    for node in tree.nodes:
        first = node.batches[0].known + node.batches[0].unknown
        for prefix, tally in tally_passing(node.steps, node.rollouts[:first]).items():
            if tally[Verdict.CORRECT] + tally[Verdict.INCORRECT] >= enough:
                found.setdefault(prefix, counts_of(tally))
    return found
