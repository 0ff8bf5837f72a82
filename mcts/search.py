"""The search of one problem: plain async code that knows no engine, no file and no Ray.

Everything it learns comes from `roll`, so the same batches give the same search: a resumed campaign answers from its
store for as long as that lasts, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import Field, model_validator

from mcts.tree import Candidate, SearchTree
from mmprm.trees.records import count_verdicts
from mmprm.trees.stopping import StoppingRule, first_draws, next_draws
from mmprm.types import Counts, Problem, Rollout, Steps, Tree

Roll = Callable[[Steps, int], Awaitable[tuple[Rollout, ...]]]
"""`await roll(steps, n)`: n fresh rollouts from the prefix `steps`."""


class SearchConfig(StoppingRule):
    """OmegaPRM with MM-PRM's settings, and a rule for how many rollouts a state needs."""

    alpha: float = Field(0.5, gt=0, le=1)
    """α in Q = α^(1 − MC(s)) · β^(len(r)/L): smaller prefers states of high value more strongly."""
    beta: float = Field(0.9, gt=0, le=1)
    """β in Q: smaller prefers short rollouts more strongly."""
    length_scale: float = Field(2000.0, gt=0)
    """L in Q, in words."""
    c_puct: float = Field(0.125, ge=0)
    """Weight of U = c_puct · sqrt(Σ N) / (1 + N(s)), which prefers states that were visited seldom."""
    max_searches: int = Field(200, ge=1)
    """Binary searches a problem at most."""
    max_rollouts: int = Field(1000, ge=1)
    """Rollouts a problem at most; a state is only begun when all its rollouts fit."""

    @model_validator(mode="after")
    def _root_fits(self) -> SearchConfig:
        if self.max_rollouts < self.rollouts:
            raise ValueError(
                f"max_rollouts={self.max_rollouts} must be at least rollouts={self.rollouts}: the root takes as many"
            )
        return self


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`ended` is one of "too easy", "too hard", "no known verdict", "no candidates left", "search budget",
    "rollout budget"."""

    tree: Tree
    ended: str


async def search(problem: Problem, roll: Roll, config: SearchConfig) -> SearchResult:
    """Search one problem; whatever `roll` raises passes through."""
    tree = SearchTree(config.alpha, config.beta, config.length_scale, config.c_puct)
    ended = await _run(tree, roll, config)
    return SearchResult(tree.freeze(problem.id), ended)


async def _run(tree: SearchTree, roll: Roll, config: SearchConfig) -> str:
    root = tree.add((), [await roll((), config.rollouts)]).counts
    if root.value is None:
        return "no known verdict"
    if root.value in (0.0, 1.0):
        return "too easy" if root.value else "too hard"
    for _ in range(config.max_searches):
        candidate = tree.select()
        if candidate is None:
            return "no candidates left"
        if not await _find_first_error(tree, candidate, roll, config):
            return "rollout budget"
    return "search budget"


async def _find_first_error(tree: SearchTree, candidate: Candidate, roll: Roll, config: SearchConfig) -> bool:
    """Binary search on a wrong rollout; False when the rollout budget ran out.

    Invariant: a right answer was reached from the first `sound` steps, and none from the first `broken`. The complete
    solution is broken from the start and never drawn from. A state without any known verdict answers nothing: the
    search of this rollout ends there.
    """
    steps = candidate.state.steps + candidate.rollout.steps
    sound, broken = len(candidate.state.steps), len(steps)
    ancestor = candidate.state.counts
    while broken - sound > 1:
        middle = (sound + broken) // 2
        counts = await _evidence(tree, steps[:middle], ancestor, roll, config)
        if counts is None:
            return False
        if counts.value is None:
            return True
        if not counts.right:
            broken = middle
            continue
        sound = middle
        # One right rollout among few passing ones settles the question, but says little of a value.
        if steps[:middle] in tree.states or counts.known >= config.shared:
            ancestor = counts
    return True


async def _evidence(
    tree: SearchTree, steps: Steps, ancestor: Counts, roll: Roll, config: SearchConfig
) -> Counts | None:
    """What is known of this prefix, after drawing from it where that is too little; None when the rollouts of a new
    state might not fit the budget.

    A right rollout of another state that ran through the prefix settles that it is sound, and enough wrong ones that it
    is broken, if its label too can come from them. Otherwise it becomes a state, and only its own rollouts count: those
    before were chosen by their outcome.
    """
    if steps in tree.states:
        return tree.states[steps].counts
    if config.shared is not None:
        through = tree.through(steps)
        labelled = tree.at_once(steps) >= config.shared
        if through.right or (labelled and through.known >= first_draws(ancestor, config)):
            return through
    if tree.total_rollouts + config.rollouts > config.max_rollouts:
        return None
    size = first = first_draws(ancestor, config)
    batches, drawn = [], Counts()
    while size:
        batches.append(await roll(steps, size))
        drawn += count_verdicts(batches[-1])
        size = next_draws(first, drawn, config)
    return tree.add(steps, batches).counts
