"""Label the steps of a given solution, in async code that does not depend on engines, files or Ray.

first_error    bisect the solution for its first error, with few rollouts until the error is between two prefixes
values         estimate the value of every prefix, as precisely as the search estimates the values of its states

A correct answer can be reached from a recoverable prefix. Bisection assumes that a prefix of a recoverable prefix is
recoverable, which is certain, and that a completer that fails from a prefix also fails from every longer one. The
latter does not hold for solutions with a correct answer, so their prefixes are checked one by one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from mcts.roll import Roller
from mcts.search import Roll, SearchConfig, SearchResult
from mmprm.steps import StepFormat
from mmprm.trees.given import first_error_bounds, is_first_error, label_steps, missing_rollouts
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
    """Adds the rest of the solution to each request, so that a sampler can tokenize the prefix in context."""

    def __init__(self, sampler: Sampler, solution: str) -> None:
        self._sampler, self._solution = sampler, solution

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        rest = self._solution[len(request.prefix) :]
        return await self._sampler.sample(replace(request, continuation=rest))


async def label_solution(problem: Problem, roller: GivenRoller, config: SearchConfig) -> SearchResult:
    """Sample the rollouts that the given solution's mode requires, and return a tree of the solution's prefixes."""
    given = problem.given
    assert given is not None, "the problem comes with a solution"
    nodes: list[Node] = []
    _add(nodes, given.steps, (await roller.grade(),))
    ended = await _MODES[given.mode](given.steps, nodes, roller, config)
    return SearchResult(Tree(problem.id, tuple(nodes)), ended)


def count_step_labels(problem: Problem, tree: Tree, config: SearchConfig) -> int:
    """Count the labeled steps of the given solution, except for the last, whose label is the solution's own verdict."""
    assert problem.given is not None, "the problem comes with a solution"
    return sum(counts is not None for counts in label_steps(tree, problem.given, config)[:-1])


async def _locate(steps: Steps, nodes: list[Node], roll: Roll, config: SearchConfig) -> str:
    """Find the first error, sampling one batch at a time."""
    rule = FirstErrorRule(**config.model_dump(include=set(StoppingRule.model_fields)))
    verdict = nodes[0].counts
    if verdict.value is None:
        return "no known verdict"
    choose = _next_to_check if verdict.correct else _next_to_bisect
    while True:
        found = choose(steps, nodes, rule)
        if isinstance(found, str):
            return found
        size = missing_rollouts(nodes, found, rule)
        if _sampled(nodes) + size > config.max_rollouts:
            return "rollout budget"
        _add(nodes, steps[:found], await roll(steps[:found], size))


def _next_to_bisect(steps: Steps, nodes: Sequence[Node], rule: StoppingRule) -> int | str:
    """Return the length of the next prefix to sample from in an incorrect solution, or the reason to stop.

    A prefix counts as failed for now if its first batch fails. More rollouts are sampled from it, until it has enough
    failures, only once the prefix before it is known to be recoverable. If one of them is correct, bisection continues
    with longer prefixes. If the first step fails, rollouts are also sampled from the question: a completer that never
    solves the problem cannot judge the step.
    """
    recoverable, failed = first_error_bounds(nodes, steps)
    if failed - recoverable > 1:
        length = (recoverable + failed) // 2
    elif failed < len(steps) and missing_rollouts(nodes, failed, rule):
        length = failed
    elif recoverable or _counts(nodes, ()).correct:
        return "first error"
    else:
        length = 0
    if missing_rollouts(nodes, length, rule):
        return length
    return "too hard" if _counts(nodes, steps[:length]).known else "no known verdict"


def _next_to_check(steps: Steps, nodes: Sequence[Node], rule: StoppingRule) -> int | str:
    """Return the length of the next prefix to sample from in a solution with a correct answer, or the reason to stop.

    Two errors may cancel, so each prefix is checked, from the question on, unless correct rollouts from shorter ones
    pass through it. If the completer fails from a prefix but is too weak to tell, the solution is trusted.
    """
    recoverable, failed = first_error_bounds(nodes, steps)
    length = min(failed, recoverable + 1) if _counts(nodes, ()).correct else 0
    if length >= len(steps):
        return "no error"
    if missing_rollouts(nodes, length, rule):
        return length
    return "first error" if length and is_first_error(nodes, steps, length, rule) else "no error"


async def _evaluate(steps: Steps, nodes: list[Node], roll: Roll, config: SearchConfig) -> str:
    """Estimate the value of the question and of every proper prefix of the solution, shortest first."""
    for length in range(len(steps)):
        if _sampled(nodes) + config.rollouts > config.max_rollouts:
            return "rollout budget"
        while size := missing_rollouts(nodes, length, config):
            _add(nodes, steps[:length], await roll(steps[:length], size))
    return "every step"


_MODES: dict[str, Callable[[Steps, list[Node], Roll, SearchConfig], Awaitable[str]]] = {
    "first_error": _locate,
    "values": _evaluate,
}


def _counts(nodes: Sequence[Node], steps: Steps) -> Counts:
    return next((node.counts for node in nodes if node.steps == steps), Counts())


def _sampled(nodes: Sequence[Node]) -> int:
    """Return the number of rollouts, not counting the verdict of the solution itself."""
    return sum(len(node.rollouts) for node in nodes) - 1


def _add(nodes: list[Node], steps: Steps, rollouts: tuple[Rollout, ...]) -> None:
    """Add a batch of rollouts to the node of a prefix."""
    position = next((number for number, node in enumerate(nodes) if node.steps == steps), len(nodes))
    before = nodes[position] if position < len(nodes) else Node(steps, (), ())
    nodes[position:] = [
        Node(steps, (*before.batches, count_verdicts(rollouts)), before.rollouts + rollouts),
        *nodes[position + 1 :],
    ]
