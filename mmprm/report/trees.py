"""The tree of a problem as readers walk it: labelled prefixes, each under the longest one that it continues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmprm.trees.evidence import evidence, passing
from mmprm.trees.stopping import StoppingRule
from mmprm.types import Counts, Rollout, Steps, Tree


@dataclass(slots=True)
class Branch:
    """A prefix with the counts behind its value, as `mmprm.trees.evidence` has them.

    `number` is its place in the order of the search, with the rollouts drawn from it. It is None for a prefix that was
    never drawn from: rollouts of other states label it, some of those in `through`, which names each one that runs
    through it, as (number of the state, place among its rollouts). `above` is the number of steps of the branch above.
    """

    steps: Steps
    number: int | None
    counts: Counts
    rollouts: tuple[Rollout, ...]
    above: int = 0
    through: list[tuple[int, int]] = field(default_factory=list)
    children: list[Branch] = field(default_factory=list)

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()


def grow(tree: Tree, rule: StoppingRule) -> Branch:
    """The root, with every state and every other labelled prefix below it; siblings stand in search order."""
    assert not tree.nodes[0].steps, "a search begins at the root"
    labels = evidence(tree, rule)
    branches = {
        node.steps: Branch(node.steps, number, labels.get(node.steps, node.counts), node.rollouts)
        for number, node in enumerate(tree.nodes)
    }
    for steps, counts in labels.items():
        branches.setdefault(steps, Branch(steps, None, counts, ()))
    for branch in list(branches.values())[1:]:
        above = next(length for length in reversed(range(len(branch.steps))) if branch.steps[:length] in branches)
        branch.above = above
        branches[branch.steps[:above]].children.append(branch)
    _find_passing(tree, branches)
    return branches[()]


def _find_passing(tree: Tree, branches: dict[Steps, Branch]) -> None:
    for number, node in enumerate(tree.nodes):
        for place, rollout in enumerate(node.rollouts):
            for prefix in passing(node.steps, rollout):
                if prefix in branches and branches[prefix].number is None:
                    branches[prefix].through.append((number, place))
