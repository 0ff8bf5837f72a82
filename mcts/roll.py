"""Where a search's rollouts come from: the store while it has them, then the sampler, the splitter and the grader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from mmprm.sampling.seeds import derive_seed
from mmprm.steps import Markup, Split, split
from mmprm.types import Batch, Completion, Grader, Grading, Problem, Rollout, Sampler, SampleRequest, Steps, Verdict


class Roller:
    """`await roller(steps, n)` gives the next n rollouts from a prefix, as `mcts.search.Roll` asks.

    `stored` are the batches of an earlier, interrupted search of this problem. `emit` is given each new batch when it
    is finished. Seeds come from content, so asking again asks for the same samples.
    """

    def __init__(
        self,
        problem: Problem,
        sampler: Sampler,
        grader: Grader,
        markup: Markup,
        run_seed: int,
        stored: Iterable[Batch],
        emit: Callable[[Batch], None],
    ) -> None:
        self._problem = problem
        self._sampler = sampler
        self._grader = grader
        self._markup = markup
        self._run_seed = run_seed
        self._stored = {(batch.steps, batch.first_draw): batch for batch in stored}
        self._emit = emit
        self._drawn: dict[Steps, int] = {}

    async def __call__(self, steps: Steps, n: int) -> tuple[Rollout, ...]:
        first_draw = self._drawn.get(steps, 0)
        self._drawn[steps] = first_draw + n
        batch = self._stored.pop((steps, first_draw), None)
        if batch is None:
            batch = await self._draw(steps, n, first_draw)
            self._emit(batch)
        assert len(batch.rollouts) == n, "the store refuses another configuration, so batches keep their size"
        return batch.rollouts

    async def _draw(self, steps: Steps, n: int, first_draw: int) -> Batch:
        prefix = "".join(steps)
        seed = derive_seed(self._run_seed, self._problem.id, prefix, first_draw)
        completions = await self._sampler.sample(SampleRequest(self._problem, prefix, n, seed))
        texts = tuple(dict.fromkeys(completion.text for completion in completions))  # many draws say the same
        gradings = await asyncio.gather(*(self._grader.grade(self._problem, prefix + text) for text in texts))
        read = {text: (split(text, self._markup), grading) for text, grading in zip(texts, gradings, strict=True)}
        rollouts = tuple(_rollout(completion, *read[completion.text]) for completion in completions)
        return Batch(self._problem.id, steps, first_draw, rollouts)


def _rollout(completion: Completion, cut: Split, grading: Grading) -> Rollout:
    verdict, reason = grading.verdict, grading.reason
    if completion.finish_reason == "abort":
        verdict, reason = Verdict.UNKNOWN, "aborted by the engine"
    return Rollout(cut.steps, verdict, completion.token_count, completion.text, cut.reason, reason)
