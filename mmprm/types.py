"""The words that every room shares: frozen data, and the protocols between rooms. Standard library only."""

from __future__ import annotations

import bisect
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Steps = tuple[str, ...]
"""The steps of a (partial) solution, verbatim: `"".join(steps)` is the text the policy wrote."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image, as a path or as encoded bytes (PNG, JPEG, …); opened only where pixels are needed."""

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (self.path is None) != (self.data is None), "a picture has a path or bytes, not both"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer. `id` is a hash of the content unless the source has one of its own.

    `extra` holds the other columns of the row it was read from, for reward functions; it is no part of its identity.
    """

    id: str
    question: str
    answer: str
    pictures: tuple[Picture, ...] = ()
    choices: tuple[str, ...] = ()
    solution: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Ask for `n` completions of the assistant turn that already begins with `prefix`.

    `seed` is derived from content (run seed, problem id, prefix, first draw); draw i of the request uses seed + i.

    A completion ends after the first of the strings `stop`, which stays in its text; a sampler that cannot do so writes
    on, at the cost of tokens. `greedy` asks for the likeliest completion, with n = 1.
    """

    problem: Problem
    prefix: str
    n: int
    seed: int
    stop: tuple[str, ...] = ()
    greedy: bool = False
    prefix_ids: tuple[int, ...] | None = None
    """Tokens with which the policy wrote the prefix, up to the last one that ends within it; None where they are not
    known. A sampler that takes no token ids continues the text."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a text as the policy wrote them, and for each the number of characters of the text up to its end.

    Ends never decrease. A token may end beyond the text, where a stop string cut it, or before its first character.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]

    def whole_in(self, characters: int) -> int:
        """Return how many tokens end within the first `characters` of the text."""
        return bisect.bisect_right(self.ends, characters)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy wrote after the prefix; after an empty one, with what the prompt itself begins the turn with (a
    prefill, a tag that the chat template opens). `finish_reason` is "stop", "length" or "abort".

    `tokens` continue the prefix_ids of the request (none for an empty prefix); None where the sampler does not know
    them, or continued text.
    """

    text: str
    token_count: int
    finish_reason: str
    tokens: Tokens | None = None


class Verdict(enum.IntEnum):
    """UNKNOWN (unparseable gold, time-out, judge failure) is counted apart and never means "incorrect"."""

    INCORRECT = 0
    CORRECT = 1
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class Grading:
    verdict: Verdict
    extracted: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """A graded continuation of a prefix. `steps` continue the prefix; empty when the text could not be split,
    and then `unsplit` says why. Such a rollout still counts for the prefix's value."""

    steps: Steps
    verdict: Verdict
    token_count: int
    text: str
    unsplit: str | None = None
    reason: str = ""
    step_ids: tuple[tuple[int, ...], ...] = ()
    """Token ids of each step but the last, for what a search may continue: the tokens that end in the step. Empty where
    they are not known."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Verdicts of the rollouts that are evidence for the value of a prefix.

    `estimate` stands in for right / (right + wrong) where the outcomes themselves decided how many rollouts were drawn.
    """

    right: int = 0
    wrong: int = 0
    unknown: int = 0
    estimate: float | None = None

    @property
    def known(self) -> int:
        return self.right + self.wrong

    @property
    def value(self) -> float | None:
        """Monte Carlo value in [0, 1]; None without any known verdict."""
        if self.estimate is not None:
            return self.estimate
        return self.right / self.known if self.known else None

    def __add__(self, other: Counts) -> Counts:
        assert self.estimate is None, "estimates of stopped batches cannot be pooled without bias"
        assert other.estimate is None, "estimates of stopped batches cannot be pooled without bias"
        return Counts(self.right + other.right, self.wrong + other.wrong, self.unknown + other.unknown)


@dataclass(frozen=True, slots=True)
class Batch:
    """One finished request of a search: rollouts first_draw, first_draw + 1, … of the prefix `steps`.

    The unit of durability: a campaign's store is a log of batches, keyed by (problem_id, steps, first_draw).
    """

    problem_id: str
    steps: Steps
    first_draw: int
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One state: the prefix `steps` from the root, with the rollouts drawn from it, in draw order, and the counts of
    each batch in which they were drawn."""

    steps: Steps
    batches: tuple[Counts, ...]
    rollouts: tuple[Rollout, ...]

    @property
    def counts(self) -> Counts:
        return sum(self.batches, Counts())


@dataclass(frozen=True, slots=True)
class Tree:
    """The searched states of one problem, in the order in which the search evaluated them; the first is the root."""

    problem_id: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class LabelledPath:
    """A solution with, for each step, the counts behind its soft label, or None where the step was not evaluated.

    `complete` paths end in a final answer: their last step carries that solution's own verdict. Over all the paths of a
    problem each distinct prefix carries its label once.
    """

    problem_id: str
    steps: Steps
    counts: tuple[Counts | None, ...]
    complete: bool

    def __post_init__(self) -> None:
        assert len(self.steps) == len(self.counts), "one label slot per step"


@dataclass(frozen=True, slots=True)
class Solution:
    """A solution to be judged: its plain steps, without step markup."""

    problem: Problem
    steps: Steps


@dataclass(frozen=True, slots=True)
class StepScores:
    """P(step is right) for every step of a solution, each in [0, 1]; for its first steps where a scorer was told to cut
    what is too long."""

    scores: tuple[float, ...]


class Sampler(Protocol):
    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return `request.n` completions in draw order, or raise SamplingError."""
        ...


class Grader(Protocol):
    async def grade(self, problem: Problem, response: str) -> Grading:
        """Judge the final answer in `response`; never raises for what the response or the gold contains."""
        ...


class Scorer(Protocol):
    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """One StepScores a solution, in order; raises DataError for a solution that cannot be scored."""
        ...
