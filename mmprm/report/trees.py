"""Arrange a problem's search tree for display: each labeled prefix is a child of the longest labeled prefix that it
extends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mmprm.trees.evidence import evidence, passing
from mmprm.trees.stopping import StoppingRule
from mmprm.types import Counts, Rollout, Steps, Tree


@dataclass(slots=True)
class Branch:
    """Holds a prefix in the displayed tree, with the counts that determine its value (see `mmprm.trees.evidence`).

    `number` is the state's position in search order, and `rollouts` are the rollouts sampled from it. `number` is None
    for a prefix that was never sampled from and is labeled by rollouts of other states. `through` lists all rollouts
    that pass through such a prefix, as (state number, rollout index). `above` is the number of steps in the parent
    branch.
    """

    steps: Steps
    number: int | None
    counts: Counts
    rollouts: tuple[Rollout, ...]
    above: int = 0
    through: list[tuple[int, int]] = field(default_factory=list)
    children: list[Branch] = field(default_factory=list)

    def walk(self) -> Iterator[Branch]:
        """Yield this branch and all its descendants in depth-first order."""
        yield self
        for child in self.children:
            yield from child.walk()


def grow(tree: Tree, rule: StoppingRule) -> Branch:
    """Build the display tree from the search tree's nodes and all other labeled prefixes, and return its root.

    Siblings are in search order. The tree of a given solution may lack the root, which is then shown without counts.
    """
    labels = evidence(tree, rule)
    branches = {(): Branch((), None, Counts(), ())} | {
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
        for position, rollout in enumerate(node.rollouts):
            for prefix in passing(node.steps, rollout):
                if prefix in branches and branches[prefix].number is None:
                    branches[prefix].through.append((number, position))
