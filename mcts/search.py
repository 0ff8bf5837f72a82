"""Run OmegaPRM's tree search on one problem, in async code that does not depend on engines, files or Ray.

All rollouts come from `roll`, so the same batches give the same search. A resumed campaign replays the batches of its
store and then samples new ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import Field, model_validator

from mcts.tree import SearchCandidate, SearchTree
from mmprm.trees.serialization import count_verdicts
from mmprm.trees.stopping import StoppingRule, first_batch_size, next_batch_size
from mmprm.types import Counts, Problem, Rollout, Steps, Tree

Roll = Callable[[Steps, int], Awaitable[tuple[Rollout, ...]]]
"""`await roll(steps, n)` returns n new rollouts from the prefix `steps`."""


class SearchConfig(StoppingRule):
    """Configures the OmegaPRM search and the number of rollouts per state. The defaults are those of MM-PRM."""

    alpha: float = Field(0.5, gt=0, le=1)
    """α in Q = α^(1 − MC(s)) · β^(len(r)/L) for a rollout r from a state s with Monte Carlo value MC(s). Smaller
    values favor high-value states more strongly."""
    beta: float = Field(0.9, gt=0, le=1)
    """β in Q; smaller values favor short rollouts more strongly."""
    length_scale: float = Field(2000.0, gt=0)
    """Length scale L in Q, as a number of words."""
    c_puct: float = Field(0.125, ge=0)
    """Exploration weight in U = c_puct · sqrt(Σ N) / (1 + N(s)), where N(s) is the number of visits of state s. U
    favors rarely visited states."""
    max_searches: int = Field(200, ge=1)
    """Maximum number of binary searches per problem."""
    max_rollouts: int = Field(1000, ge=1)
    """Maximum number of rollouts per problem. A new state is sampled only if all its rollouts fit."""

    @model_validator(mode="after")
    def _root_fits(self) -> SearchConfig:
        if self.max_rollouts < self.rollouts:
            raise ValueError(
                f"max_rollouts={self.max_rollouts} must be at least rollouts={self.rollouts}, which the root alone "
                "takes; raise max_rollouts or lower rollouts"
            )
        return self


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Contains the search tree and the reason why the search ended.

    `ended` is one of "too easy", "too hard", "no known verdict", "no candidates left", "search budget" and "rollout
    budget".
    """

    tree: Tree
    ended: str


async def search(problem: Problem, roll: Roll, config: SearchConfig) -> SearchResult:
    """Search one problem and return its tree. Exceptions from `roll` propagate."""
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


async def _find_first_error(tree: SearchTree, candidate: SearchCandidate, roll: Roll, config: SearchConfig) -> bool:
    """Find the first error in an incorrect rollout by binary search; return False if the rollout budget ran out.

    Invariant: some rollout from the first `recoverable` steps was correct, and no rollout from the first `failed` steps
    was. The complete solution is incorrect, so it counts as failed without sampling from it. If a prefix has no known
    verdict, the binary search ends, because neither half can be excluded.
    """
    steps = candidate.state.steps + candidate.rollout.steps
    recoverable, failed = len(candidate.state.steps), len(steps)
    ancestor = candidate.state.counts
    while failed - recoverable > 1:
        middle = (recoverable + failed) // 2
        counts = await _evidence(tree, steps[:middle], ancestor, roll, config)
        if counts is None:
            return False
        if counts.value is None:
            return True
        if not counts.correct:
            failed = middle
            continue
        recoverable = middle
        # One correct rollout among few proves that the prefix is recoverable, but is a poor estimate of its value.
        if steps[:middle] in tree.states or counts.known >= config.min_shared_rollouts:
            ancestor = counts
    return True


async def _evidence(
    tree: SearchTree, steps: Steps, ancestor: Counts, roll: Roll, config: SearchConfig
) -> Counts | None:
    """Return a prefix's verdict counts, sampling from it if the known rollouts are not enough.

    Returns None if the rollouts of a new state might exceed the budget. Rollouts of other states that pass through the
    prefix are enough if one of them is correct. If all are incorrect, there must be enough of them, also to label the
    prefix. Otherwise the prefix becomes a state and only its own rollouts count, because the earlier ones were selected
    by their outcome.
    """
    if steps in tree.states:
        return tree.states[steps].counts
    if config.min_shared_rollouts is not None:
        through = tree.through(steps)
        labeled = tree.at_once(steps) >= config.min_shared_rollouts
        if through.correct or (labeled and through.known >= first_batch_size(ancestor, config)):
            return through
    if tree.total_rollouts + config.rollouts > config.max_rollouts:
        return None
    size = first = first_batch_size(ancestor, config)
    batches, sampled = [], Counts()
    while size:
        batches.append(await roll(steps, size))
        sampled += count_verdicts(batches[-1])
        size = next_batch_size(first, sampled, config)
    return tree.add(steps, batches).counts
