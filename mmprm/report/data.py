"""Define the contents of a report as frozen dataclasses, and choose the solutions to show."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mmprm.metrics import Interval
from mmprm.selection.accuracy import AccuracyAtN
from mmprm.selection.groups import CandidateGroup, rewards
from mmprm.types import ImageRef, Problem, Steps, Verdict

StepTruth = Callable[[Problem, Steps], Sequence[bool]]
"""Function that returns whether each step of a solution is correct, for data with known step correctness."""


@dataclass(frozen=True, slots=True)
class Headline:
    """Holds one headline metric and its target.

    `bar` describes the target value, `met` says whether it is reached (None if there is no bar), and `note` why it is
    missed.
    """

    key: str
    value: float | int | str | None
    bar: str | None = None
    met: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """Holds one entry of the training log: the optimizer step and the losses."""

    step: int
    loss: float | None = None
    held_out_loss: float | None = None


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """Holds a step's plain text and score, and whether the step is correct (None if unknown)."""

    text: str
    score: float
    correct: bool | None = None


@dataclass(frozen=True, slots=True)
class JudgedSolution:
    """Holds a scored solution with its problem, aggregate score, and verdict on the answer."""

    question: str
    answer: str
    steps: tuple[JudgedStep, ...]
    reward: float
    verdict: Verdict
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyGain:
    """Holds the policy's accuracy before and after reinforcement learning.

    `before` and `after` are accuracies on `problems` held-out problems, and `gain` is their difference, paired by
    problem. `rollouts` holds the fraction of correct rollouts at each training step.
    """

    before: Interval
    after: Interval
    gain: Interval
    problems: int
    rollouts: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class ReportData:
    """Holds the content of one report page. Sections with no data are omitted.

    `labels` are the soft labels in [0, 1] of distinct steps, and `labels_correct`, if given, holds the truth for each.
    `facts` are the run's settings and versions, listed at the end of the page.
    """

    title: str
    subtitle: str = ""
    headlines: Sequence[Headline] = ()
    accuracy: Sequence[AccuracyAtN] = ()
    problems: int = 0
    aggregator: str = ""
    labels: Sequence[float] = ()
    labels_correct: Sequence[bool] | None = None
    training: Sequence[TrainingPoint] = ()
    best: Sequence[JudgedSolution] = ()
    worst: Sequence[JudgedSolution] = ()
    policy: PolicyGain | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def extremes(
    groups: Sequence[CandidateGroup], aggregate: str, count: int = 3, truth: StepTruth | None = None
) -> tuple[list[JudgedSolution], list[JudgedSolution]]:
    """Return the `count` highest- and lowest-reward solutions, most extreme first.

    Each list has at most one solution per problem.
    """

    def judged(position: int) -> Iterator[tuple[float, int, JudgedSolution]]:
        for index, group in enumerate(groups):
            scored = [
                (reward, candidate)
                for reward, candidate in zip(rewards(group, aggregate), group.candidates, strict=True)
                if candidate.scores is not None
            ]
            if not scored:
                continue
            # Sorting is stable, so candidates with equal rewards stay in sampling order.
            reward, candidate = sorted(scored, key=lambda item: item[0])[position]
            correct = truth(group.problem, candidate.steps) if truth else [None] * len(candidate.steps)
            steps = tuple(
                JudgedStep(text, score, mark)
                for text, score, mark in zip(candidate.steps, candidate.scores.scores, correct, strict=True)
            )
            problem = group.problem
            yield (
                reward,
                index,
                JudgedSolution(problem.question, problem.answer, steps, reward, candidate.verdict, problem.images),
            )

    best = heapq.nlargest(count, judged(-1), key=lambda item: (item[0], -item[1]))
    worst = heapq.nsmallest(count, judged(0), key=lambda item: (item[0], item[1]))
    return [solution for *_, solution in best], [solution for *_, solution in worst]
