"""Which rollouts are evidence for the value of a prefix.

A state, a prefix that was drawn from, is labelled by its own rollouts alone: it was asked about because of a wrong
rollout that runs through it, so what ran through it before was chosen by its outcome. But a rollout is fair evidence
for the prefixes behind its state, as it chose them before it ended. So a prefix that was never drawn from is labelled
by the rollouts that run through it, once they are `StoppingRule.shared`: a number that does not depend on how they
ended. When a state is drawn from, what ran behind it before is dropped: had one been right, it would not have been.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmprm.stopping import StoppingRule, unbiased
from mmprm.types import Counts, Rollout, Steps, Tree, Verdict

Tally = list[int]
"""Numbers of rollouts by Verdict."""


def passing(steps: Steps, rollout: Rollout) -> Iterator[Steps]:
    """Each longer prefix that a rollout drawn from `steps` runs through, short of its last step."""
    return (steps + rollout.steps[:length] for length in range(1, len(rollout.steps)))


def counts_of(tally: Tally) -> Counts:
    return Counts(tally[Verdict.CORRECT], tally[Verdict.INCORRECT], tally[Verdict.UNKNOWN])


def evidence(tree: Tree, rule: StoppingRule) -> dict[Steps, Counts]:
    """The evidence for every prefix of the tree that has enough: states with a known verdict in the tree's order, then
    other prefixes, unless the problem is always or never solved. The value of a state is freed from the bias of the
    stopping rule."""
    found = {node.steps: unbiased(node.batches, rule) for node in tree.nodes}
    if rule.shared is not None and tree.nodes and tree.nodes[0].counts.value not in (None, 0.0, 1.0):
        for prefix, counts in _shared(tree).items():
            if prefix not in found and counts.known >= rule.shared:
                found[prefix] = counts
    return {steps: counts for steps, counts in found.items() if counts.known}


def count_labels(tree: Tree, rule: StoppingRule) -> int:
    """Prefixes, short of complete solutions, with evidence."""
    return sum(bool(steps) for steps in evidence(tree, rule))


def _shared(tree: Tree) -> dict[Steps, Counts]:
    """Prefix → counts of the rollouts that ran through it since the latest of the states before it was drawn from."""
    place = {node.steps: number for number, node in enumerate(tree.nodes)}
    tallies: dict[Steps, Tally] = {}
    for number, node in enumerate(tree.nodes):
        latest = max(place.get(node.steps[:depth], 0) for depth in range(len(node.steps) + 1))
        for rollout in node.rollouts:
            since = latest
            for prefix in passing(node.steps, rollout):
                if since > number:
                    break
                tallies.setdefault(prefix, [0, 0, 0])[rollout.verdict] += 1
                since = max(since, place.get(prefix, 0))
    return {prefix: counts_of(tally) for prefix, tally in tallies.items()}
