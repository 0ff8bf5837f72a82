"""Label the steps of a given solution, in async code that does not depend on engines, files or Ray.

first_error    bisect the solution for its first error, stopping at each prefix as soon as a rollout is correct
values         estimate the value of every prefix, as precisely as the search estimates the values of its states

A correct answer can be reached from a recoverable prefix. Bisection assumes that a prefix of a recoverable prefix is
recoverable, which is certain, and that a completer that fails from a prefix also fails from every longer one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from mcts.roll import Roller
from mcts.search import Roll, SearchConfig, SearchResult, sample_state
from mmprm.steps import StepFormat
from mmprm.trees.given import first_error_bounds, label_steps
from mmprm.trees.serialization import count_verdicts
from mmprm.trees.stopping import FirstErrorRule, StoppingRule
from mmprm.types import (
    Batch,
    Completion,
    Counts,
    Grader,
    Node,
    Problem,
    Rollout,
    Sampler,
    SampleRequest,
    Steps,
    Tree,
)


class GivenRoller(Roller):
    """Samples from the prefixes of the problem's given solution, and grades the solution itself."""

    def __init__(
        self,
        problem: Problem,
        sampler: Sampler,
        grader: Grader,
        step_format: StepFormat,
        run_seed: int,
        stored: Iterable[Batch],
        emit: Callable[[Batch], None],
    ) -> None:
        assert problem.given is not None, "the problem comes with a solution"
        self._steps = problem.given.steps
        in_context = _InContext(sampler, "".join(self._steps))
        super().__init__(problem, in_context, grader, step_format, run_seed, stored, emit)

    async def grade(self) -> Rollout:
        """Return the verdict of the given solution as a rollout without steps."""
        batch = self._stored.pop((self._steps, 0), None)
        if batch is None:
            grading = await self._grader.grade(self._problem, "".join(self._steps))
            verdict = Rollout((), grading.verdict, 0, "", None, grading.reason)
            batch = Batch(self._problem.id, self._steps, 0, (verdict,))
            self._emit(batch)
        return batch.rollouts[0]


class _InContext:
    """Adds the rest of the solution to each request, so that prefixes end where its tokens end."""

    def __init__(self, sampler: Sampler, solution: str) -> None:
        self._sampler, self._solution = sampler, solution

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        rest = self._solution[len(request.prefix) :]
        return await self._sampler.sample(replace(request, continuation=rest))


async def label_solution(problem: Problem, roller: GivenRoller, config: SearchConfig) -> SearchResult:
    """Sample what the mode of the given solution needs, and return the tree of its prefixes."""
    given = problem.given
    assert given is not None, "the problem comes with a solution"
    nodes = [_node(given.steps, [(await roller.grade(),)])]
    ended = await _MODES[given.mode](given.steps, nodes, roller, config)
    return SearchResult(Tree(problem.id, tuple(nodes)), ended)


def count_step_labels(problem: Problem, tree: Tree, config: SearchConfig) -> int:
    """Count the labels of the given solution's steps, without its own verdict."""
    assert problem.given is not None, "the problem comes with a solution"
    return sum(counts is not None for counts in label_steps(tree, problem.given, config)[:-1])


async def _locate(steps: Steps, nodes: list[Node], roll: Roll, config: SearchConfig) -> str:
    """Find the first error by bisection; see `first_error_bounds` for the invariant.

    If even the first step fails, the question itself is sampled from: a completer that never solves the problem cannot
    judge the step.
    """
    rule = FirstErrorRule(**config.model_dump(include=set(StoppingRule.model_fields)))
    if nodes[0].counts.value is None:
        return "no known verdict"
    while True:
        recoverable, failed = first_error_bounds(nodes, steps)
        sampled = {len(node.steps) for node in nodes}
        if recoverable == len(steps):
            return "no error"
        if failed - recoverable == 1 and (recoverable or 0 in sampled):
            return "first error"
        length = (recoverable + failed) // 2 if failed - recoverable > 1 else 0
        node = await _sample(steps[:length], nodes, roll, rule, config.max_rollouts)
        if node is None:
            return "rollout budget"
        nodes.append(node)
        if node.counts.value is None:
            return "no known verdict"
        if not length and not node.counts.correct:
            return "too hard"


async def _evaluate(steps: Steps, nodes: list[Node], roll: Roll, config: SearchConfig) -> str:
    """Estimate the value of the question and of every proper prefix of the solution, from the shortest on."""
    for length in range(len(steps)):
        node = await _sample(steps[:length], nodes, roll, config, config.max_rollouts)
        if node is None:
            return "rollout budget"
        nodes.append(node)
    return "every step"


_MODES: dict[str, Callable[[Steps, list[Node], Roll, SearchConfig], Awaitable[str]]] = {
    "first_error": _locate,
    "values": _evaluate,
}


async def _sample(steps: Steps, nodes: list[Node], roll: Roll, rule: StoppingRule, budget: int) -> Node | None:
    """Sample from a prefix until the rule is satisfied, or return None if this might exceed the rollout budget."""
    if sum(len(node.rollouts) for node in nodes[1:]) + rule.rollouts > budget:
        return None
    ancestors = [node for node in nodes if node.counts.correct and len(node.steps) < len(steps)]
    nearest = max(ancestors, key=lambda node: len(node.steps), default=None)
    return _node(steps, await sample_state(steps, nearest.counts if nearest else Counts(), roll, rule))


def _node(steps: Steps, batches: list[tuple[Rollout, ...]]) -> Node:
    return Node(steps, tuple(map(count_verdicts, batches)), tuple(rollout for batch in batches for rollout in batch))
