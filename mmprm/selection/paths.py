"""Represent partial solutions, and extend them step by step by sampling from a policy."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from mmprm.sampling.seeds import derive_seed
from mmprm.steps import StepFormat, ends_within, plain, split
from mmprm.types import Completion, Problem, Sampler, SampleRequest, Steps, Tokens

STOPS: dict[StepFormat, Callable[[int], tuple[str, ...]]] = {
    "tags": lambda number: ("</step>", f"</step_{number}>"),
    "blank_lines": lambda number: ("\n\n",),
    "numbered": lambda number: (),
    "thoughts": lambda number: (),
}
"""Maps each step format to a function that returns the stop strings for the end of step `number`. They only save
tokens: the end of the step is always found by steps.split. With numbered and thoughts, only the start of the next
step ends a step, so a whole continuation is generated and cut."""


class PathState(enum.Enum):
    """State of a path: OPEN can be continued, COMPLETE was ended by the policy, BROKEN cannot be split into steps."""

    OPEN = enum.auto()
    COMPLETE = enum.auto()
    BROKEN = enum.auto()


@dataclass(frozen=True, slots=True)
class Path:
    """Holds a partial solution: its steps as written by the policy and, in `tail`, any text after them that is not a
    step.

    `token_count` is the number of tokens generated for the path. `ids` are the ids of the tokens that end within the
    steps, or None if the sampler does not report them.
    """

    steps: Steps = ()
    token_count: int = 0
    state: PathState = PathState.OPEN
    tail: str = ""
    ids: tuple[int, ...] | None = field(default=(), compare=False)

    @property
    def text(self) -> str:
        return "".join(self.steps) + self.tail


class Writer:
    """Samples steps and solutions for one problem; `tokens` and `samples` count everything it has generated."""

    def __init__(self, problem: Problem, sampler: Sampler, step_format: StepFormat, run_seed: int) -> None:
        self.problem = problem
        self.tokens = 0
        self.samples = 0
        self._sampler = sampler
        self._step_format = step_format
        self._run_seed = run_seed

    async def solutions(self, n: int) -> list[Path]:
        """Sample n complete solutions, in sampling order."""
        completions = await self._sample(SampleRequest(self.problem, "", n, self._seed("", 0)))
        return [Path(token_count=c.token_count, state=PathState.COMPLETE, tail=c.text) for c in completions]

    async def steps(self, path: Path, n: int, first_sample: int = 0, greedy: bool = False) -> list[Path]:
        """Sample n candidates for the next step of an open path, in sampling order."""
        stop = STOPS[self._step_format](len(path.steps) + 1)
        seed = self._seed(path.text, first_sample)
        ids = path.ids if path.steps else None
        completions = await self._sample(SampleRequest(self.problem, path.text, n, seed, stop, greedy, ids))
        whole = await asyncio.gather(*(self._whole(path, completion, stop, greedy) for completion in completions))
        return [extended(path, completion, stop, self._step_format) for completion in whole]

    def plain(self, path: Path) -> Steps:
        """Return the path's steps without step markup."""
        return tuple(plain(step, self._step_format) for step in path.steps)

    async def _whole(self, path: Path, completion: Completion, stop: tuple[str, ...], greedy: bool) -> Completion:
        """Return the completion, continued without stop strings if it was stopped inside a code block or formula."""
        text, tokens = completion.text, completion.tokens
        if self._step_format == "tags" or not text.endswith(stop) or not ends_within(text):
            return completion
        ids = None
        if tokens is not None and path.ids is not None:
            ids = (*path.ids, *tokens.ids[: tokens.whole_in(len(text))])
        prefix = path.text + text
        # The stop string was part of a code block or formula, not the end of a step; continue without stop strings.
        (rest,) = await self._sample(SampleRequest(self.problem, prefix, 1, self._seed(prefix, 0), (), greedy, ids))
        count = completion.token_count + rest.token_count
        joined = None
        if ids is not None and rest.tokens is not None:
            known = tokens.whole_in(len(text))
            ends = (*tokens.ends[:known], *(len(text) + end for end in rest.tokens.ends))
            joined = Tokens((*tokens.ids[:known], *rest.tokens.ids), ends)
        return Completion(text + rest.text, count, rest.finish_reason, joined)

    def _seed(self, prefix: str, first_sample: int) -> int:
        return derive_seed(self._run_seed, self.problem.id, prefix, first_sample)

    async def _sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        completions = await self._sampler.sample(request)
        self.tokens += sum(completion.token_count for completion in completions)
        self.samples += len(completions)
        return completions


def extended(path: Path, completion: Completion, stop: tuple[str, ...], step_format: StepFormat) -> Path:
    """Return the path extended by the first step of the completion.

    The new path is complete if the policy ended its turn with that step or without writing one. It is broken if the
    text cannot be split or was cut off within the step.
    """
    text, tokens = completion.text, path.token_count + completion.token_count
    stopped = text.endswith(stop)
    ended = completion.finish_reason == "stop" and not stopped
    # The policy ended its turn right after the last step.
    if ended and path.steps and not text.strip():
        return Path(path.steps, tokens, PathState.COMPLETE, text)
    cut = split(text, step_format).steps
    if not cut or (len(cut) == 1 and not ended and not stopped):
        return Path(path.steps, tokens, PathState.BROKEN, text)
    # A completion sampled with no stop strings may hold several steps; only the first one is used.
    complete = ended and len(cut) == 1
    state = PathState.COMPLETE if complete else PathState.OPEN
    return Path((*path.steps, cut[0]), tokens, state, ids=_ids(path, completion, len(cut[0])))


def _ids(path: Path, completion: Completion, length: int) -> tuple[int, ...] | None:
    """Return the path's token ids, extended by those of the first `length` characters of the completion."""
    if path.ids is None or completion.tokens is None:
        return None
    return (*path.ids, *completion.tokens.ids[: completion.tokens.whole_in(length)])
