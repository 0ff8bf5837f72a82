"""Supply rollouts to a search: replay stored batches first, then sample, split and grade new ones."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from mmprm.sampling.seeds import derive_seed
from mmprm.steps import StepFormat, StepSplit, split
from mmprm.trees.evidence import passing
from mmprm.types import (
    Batch,
    Completion,
    Grader,
    Grading,
    Problem,
    Rollout,
    Sampler,
    SampleRequest,
    Steps,
    Tokens,
    Verdict,
)

StepIds = tuple[tuple[int, ...], ...]
"""Token ids of consecutive steps, one tuple per step."""


class ReplayedRolls(ABC):
    """Implements `mcts.search.Roll`: `await rolls(steps, n)` returns the next n rollouts from a prefix.

    Subclasses implement `_sample`. `stored` holds the batches of an earlier, interrupted search of this problem. `emit`
    is called with each new batch as soon as it is complete.

    Rollouts from a prefix start with the token ids of the first rollout that contains it, if they are known. The
    batches determine which rollout was first, so a replay uses the same ids.
    """

    def __init__(self, problem: Problem, stored: Iterable[Batch], emit: Callable[[Batch], None]) -> None:
        self._problem = problem
        self._stored = {(batch.steps, batch.first_sample): batch for batch in stored}
        self._emit = emit
        self._sampled: dict[Steps, int] = {}
        self._ids: dict[Steps, StepIds | None] = {(): ()}
        """Maps each prefix requested so far to the token ids of its steps, or None if they are not known."""
        self._writers: dict[Steps, tuple[Steps, Rollout]] = {}
        """Maps a prefix to the first rollout with token ids that passes through it, as (start state, rollout)."""

    async def __call__(self, steps: Steps, n: int) -> tuple[Rollout, ...]:
        first_sample = self._sampled.get(steps, 0)
        self._sampled[steps] = first_sample + n
        # Fixed at the first request for this prefix, so that a replay sends the same ids.
        ids = self._ids.setdefault(steps, self._written(steps))
        batch = self._stored.pop((steps, first_sample), None)
        if batch is None:
            batch = await self._sample(steps, n, first_sample, ids if steps else None)
            self._emit(batch)
        if ids is not None:
            self._remember(steps, batch.rollouts)
        assert len(batch.rollouts) == n, "the store rejects another configuration, so batches keep their size"
        return batch.rollouts

    def _written(self, steps: Steps) -> StepIds | None:
        """Return the token ids with which the policy first generated each step, or None if they are not known."""
        if steps not in self._writers:
            return None
        state, rollout = self._writers[steps]
        before = self._ids[state]
        assert before is not None, "only rollouts from known ids are remembered"
        return (*before, *rollout.step_ids[: len(steps) - len(state)])

    def _remember(self, steps: Steps, rollouts: Iterable[Rollout]) -> None:
        for rollout in rollouts:
            if rollout.step_ids:
                for prefix in passing(steps, rollout):
                    self._writers.setdefault(prefix, (steps, rollout))

    @abstractmethod
    async def _sample(self, steps: Steps, n: int, first_sample: int, ids: StepIds | None) -> Batch:
        """Sample a new batch of n rollouts; `ids` are the token ids of `steps`, or None if they are not known."""


class Roller(ReplayedRolls):
    """Samples, splits and grades rollouts for a problem; see ReplayedRolls.

    Seeds are derived from the request's content, so repeating a request gives the same samples.
    """

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
        super().__init__(problem, stored, emit)
        self._sampler = sampler
        self._grader = grader
        self._step_format = step_format
        self._run_seed = run_seed

    async def _sample(self, steps: Steps, n: int, first_sample: int, ids: StepIds | None) -> Batch:
        prefix, prefix_ids = "".join(steps), None if ids is None else tuple(itertools.chain(*ids))
        seed = derive_seed(self._run_seed, self._problem.id, prefix, first_sample)
        completions = await self._sampler.sample(SampleRequest(self._problem, prefix, n, seed, prefix_ids=prefix_ids))
        texts = tuple(dict.fromkeys(completion.text for completion in completions))  # grade equal completions once
        gradings = await asyncio.gather(*(self._grader.grade(self._problem, prefix + text) for text in texts))
        splits = {text: split(text, self._step_format) for text in texts}
        grading_of = dict(zip(texts, gradings, strict=True))
        rollouts = tuple(_rollout(each, splits[each.text], grading_of[each.text]) for each in completions)
        return Batch(self._problem.id, steps, first_sample, rollouts)


def _rollout(completion: Completion, cut: StepSplit, grading: Grading) -> Rollout:
    verdict, reason = grading.verdict, grading.reason
    if completion.finish_reason == "abort":
        verdict, reason = Verdict.UNKNOWN, "aborted by the engine"
    # Only an incorrect rollout with several steps is searched for its first error, so only it needs token ids.
    searched = verdict is Verdict.INCORRECT and completion.tokens is not None
    step_ids = _step_ids(cut.steps, completion.tokens) if searched else ()
    return Rollout(cut.steps, verdict, completion.token_count, completion.text, cut.reason, reason, step_ids)


def _step_ids(steps: Steps, tokens: Tokens) -> tuple[tuple[int, ...], ...]:
    """Return the token ids of each step except the last.

    A token belongs to the step in which it ends, so one that crosses a step boundary belongs to the next step.
    """
    ends = itertools.accumulate(map(len, steps[:-1]))
    counts = [0, *map(tokens.whole_in, ends)]
    return tuple(tokens.ids[first:last] for first, last in itertools.pairwise(counts))
