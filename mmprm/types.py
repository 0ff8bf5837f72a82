"""Define the data types and protocols that all packages share. Imports only the standard library."""

from __future__ import annotations

import bisect
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Steps = tuple[str, ...]
"""Steps of a complete or partial solution, as written by the policy; `"".join(steps)` is the original text."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """References an image by its path or its encoded bytes (PNG, JPEG, …). The image is decoded only where pixels are
    needed."""

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (self.path is None) != (self.data is None), "an image has either a path or bytes"


@dataclass(frozen=True, slots=True)
class VideoRef:
    """References a video by its path or its encoded bytes. `frames` of its frames, evenly spaced, are decoded only
    where pixels are needed."""

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    frames: int = 8

    def __post_init__(self) -> None:
        assert (self.path is None) != (self.data is None), "a video has either a path or bytes"


@dataclass(frozen=True, slots=True)
class AudioRef:
    """References an audio recording, or the audio track of a video, by its path or its encoded bytes."""

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (self.path is None) != (self.data is None), "an audio recording has either a path or bytes"


MediaRef = ImageRef | VideoRef | AudioRef


@dataclass(frozen=True, slots=True)
class GivenSolution:
    """Holds a solution whose steps are to be labeled. Its author need not be the policy that completes its prefixes.

    `problem_id` is the id of its problem. `mode` is "first_error" or "values"; see `mcts.given`.
    """

    problem_id: str
    steps: Steps
    author: str | None = None
    mode: str = "first_error"


@dataclass(frozen=True, slots=True)
class Problem:
    """Holds a question with a verifiable answer. `id` is a hash of the content unless the source provides an id.

    `extra` holds the remaining columns of the source row, for reward functions. It does not affect equality. If `given`
    is set, the task is to label this solution, and `id` is the id of the solution.
    """

    id: str
    question: str
    answer: str
    images: tuple[ImageRef, ...] = ()
    choices: tuple[str, ...] = ()
    solution: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    given: GivenSolution | None = None
    videos: tuple[VideoRef, ...] = ()
    audios: tuple[AudioRef, ...] = ()

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """Return the images, then the videos, then the audio recordings, which is their order in a prompt without
        marks."""
        return (*self.images, *self.videos, *self.audios)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Requests `n` completions of an assistant turn that starts with `prefix`.

    `seed` is derived from content (run seed, problem id, prefix, index of the first sample). Sample i of the request
    uses seed + i.

    A completion ends after the first of the `stop` strings, which is included in its text. A sampler without support
    for stop strings generates past it, which costs tokens. `greedy` requests greedy decoding and needs n = 1.
    """

    problem: Problem
    prefix: str
    n: int
    seed: int
    stop: tuple[str, ...] = ()
    greedy: bool = False
    prefix_ids: tuple[int, ...] | None = None
    """Token ids with which the policy generated the prefix, up to the last token that ends within it, or None if
    unknown. A sampler that does not accept token ids continues the text instead."""
    continuation: str = ""
    """Rest of the given solution after the prefix, or empty if the prefix is not part of a given solution. Without
    `prefix_ids`, a sampler tokenizes the whole solution, so that the prefix ends in the tokens in which a policy would
    have written it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Holds the token ids with which the policy generated a text, and the end offset of each token in the text.

    The offsets never decrease. A token may end after the text if a stop string cut the text, or before its first
    character.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]

    def whole_in(self, characters: int) -> int:
        """Return the number of tokens that end within the first `characters` characters of the text."""
        return bisect.bisect_right(self.ends, characters)


@dataclass(frozen=True, slots=True)
class Completion:
    """Holds the text that a policy generated to continue a prefix. `finish_reason` is "stop", "length" or "abort".

    If the prefix is empty, the text also includes what the prompt put into the assistant turn, such as a prefill or a
    tag from the chat template. `tokens` continue the request's prefix_ids; they are None if the sampler does not know
    them or continued from text.
    """

    text: str
    token_count: int
    finish_reason: str
    tokens: Tokens | None = None


class Verdict(enum.IntEnum):
    """Outcome of grading an answer.

    UNKNOWN (unparseable gold answer, timeout, judge failure) never counts as incorrect.
    """

    INCORRECT = 0
    CORRECT = 1
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class Grading:
    """Holds the verdict on a response, the extracted answer, and the reason for the verdict."""

    verdict: Verdict
    extracted: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """Holds a graded continuation of a prefix.

    `steps` continue the prefix. They are empty if the text could not be split; `unsplit` then holds the reason. Such a
    rollout still counts toward the value of the prefix.
    """

    steps: Steps
    verdict: Verdict
    token_count: int
    text: str
    unsplit: str | None = None
    reason: str = ""
    step_ids: tuple[tuple[int, ...], ...] = ()
    """Token ids of each step except the last; a search may continue after any of these steps. A token belongs to the
    step in which it ends. Empty if unknown."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts the verdicts of the rollouts that determine the value of a prefix.

    `estimate` replaces correct / (correct + incorrect) if the number of rollouts depended on their outcomes.
    """

    correct: int = 0
    incorrect: int = 0
    unknown: int = 0
    estimate: float | None = None

    @property
    def known(self) -> int:
        """Return the number of rollouts that were graded correct or incorrect."""
        return self.correct + self.incorrect

    @property
    def value(self) -> float | None:
        """Return the Monte Carlo value in [0, 1], or None if no verdict is known."""
        if self.estimate is not None:
            return self.estimate
        return self.correct / self.known if self.known else None

    def __add__(self, other: Counts) -> Counts:
        assert self.estimate is None, "estimates of stopped batches cannot be pooled without bias"
        assert other.estimate is None, "estimates of stopped batches cannot be pooled without bias"
        return Counts(self.correct + other.correct, self.incorrect + other.incorrect, self.unknown + other.unknown)


@dataclass(frozen=True, slots=True)
class Batch:
    """Holds the rollouts that one search request sampled from the prefix `steps`, numbered from `first_sample`.

    A batch is the unit of durability: a campaign's store is a log of batches with the key (problem_id, steps,
    first_sample).
    """

    problem_id: str
    steps: Steps
    first_sample: int
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """Holds one state of a search tree: its prefix, its rollouts in sampling order, and the counts of each batch."""

    steps: Steps
    batches: tuple[Counts, ...]
    rollouts: tuple[Rollout, ...]

    @property
    def counts(self) -> Counts:
        """Return the total counts over all batches."""
        return sum(self.batches, Counts())


@dataclass(frozen=True, slots=True)
class Tree:
    """Holds the states that were searched for one problem, in search order. The first is the root."""

    problem_id: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class LabeledPath:
    """Holds a solution and, for each step, the counts that determine its soft label, or None if the step is unlabeled.

    A `complete` path ends in a final answer, and its last step has the verdict of that solution. Among all paths of a
    problem, each distinct prefix is labeled once.
    """

    problem_id: str
    steps: Steps
    counts: tuple[Counts | None, ...]
    complete: bool
    root_value: float | None = None
    """Monte Carlo value of the problem's root state, which has no steps, or None if it is unknown."""

    def __post_init__(self) -> None:
        assert len(self.steps) == len(self.counts), "one label per step"


@dataclass(frozen=True, slots=True)
class Solution:
    """Holds a solution to score: its problem, and its steps without step markup.

    The steps of an episode are its turns. `observations` then holds what the policy saw before each turn, and
    optionally what followed the last one, as texts and images in order. It replaces the question and images of the
    problem. Otherwise, it is empty.
    """

    problem: Problem
    steps: Steps
    observations: tuple[tuple[str | ImageRef, ...], ...] = ()

    def __post_init__(self) -> None:
        assert not self.observations or len(self.observations) - len(self.steps) in (0, 1), "one observation per turn"

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Return the images in the order in which a scorer reads them."""
        if not self.observations:
            return self.problem.images
        return tuple(part for parts in self.observations for part in parts if isinstance(part, ImageRef))

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """Return the images, videos and audio recordings in the order in which a scorer reads them."""
        return self.images if self.observations else self.problem.media

    def first_steps(self, count: int) -> Solution:
        """Return the solution's first `count` steps as a solution, with the observation that followed them."""
        return replace(self, steps=self.steps[:count], observations=self.observations[: count + 1])


@dataclass(frozen=True, slots=True)
class StepScores:
    """Holds P(no error so far) for each step of a solution, in [0, 1].

    If the scorer is configured to truncate long solutions, only the first steps have scores. `tokens` is the number of
    tokens that a thinking judge generated for the scores, and None for a process reward model, which generates none.
    """

    scores: tuple[float, ...]
    tokens: int | None = None


class Sampler(Protocol):
    """Protocol for sampling completions from a policy."""

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        """Return `request.n` completions in sampling order, or raise SamplingError."""
        ...


class Grader(Protocol):
    """Protocol for grading answers."""

    async def grade(self, problem: Problem, response: str) -> Grading:
        """Grade the final answer in `response`.

        Never raises because of the content of the response or the gold answer.
        """
        ...


class Scorer(Protocol):
    """Protocol for scoring the steps of solutions."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Return one StepScores per solution, in order; raise DataError if a solution cannot be scored."""
        ...
