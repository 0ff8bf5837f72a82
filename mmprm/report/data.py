"""What a report shows, as plain frozen data, and the choice of the solutions to show."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mmprm.metrics import Interval
from mmprm.selection.accuracy import AccuracyAtN
from mmprm.selection.groups import Group, rewards
from mmprm.types import Picture, Problem, Steps, Verdict

StepTruth = Callable[[Problem, Steps], Sequence[bool]]
"""Whether each step of a solution is right, where that is known."""


@dataclass(frozen=True, slots=True)
class Headline:
    """One measured figure. `bar` says what it must reach and `met` whether it does (None: no bar); `note` gives the
    reason where a bar is missed."""

    key: str
    value: float | int | str | None
    bar: str | None = None
    met: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """One entry of the training log: the optimizer step, and whichever losses were measured at it."""

    step: int
    loss: float | None = None
    held_out_loss: float | None = None


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """A plain step, its score, and whether it is right (None where that is not known)."""

    text: str
    score: float
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class JudgedSolution:
    """A scored solution with its problem, the aggregate of its scores, and the verdict on its answer."""

    question: str
    answer: str
    steps: tuple[JudgedStep, ...]
    reward: float
    verdict: Verdict
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyGain:
    """What reinforcement learning did to a policy: shares of right answers on `problems` held-out problems before and
    after it, `gain` paired by problem, and the share among the rollouts of each step."""

    before: Interval
    after: Interval
    gain: Interval
    problems: int
    rollouts: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class ReportData:
    """The content of one page; a section without data is left out.

    `labels` are the soft labels in [0, 1] of distinct steps, and `labels_right`, where given, the truth for each.
    `facts` are the settings and versions of the run, shown as they are at the end.
    """

    title: str
    subtitle: str = ""
    headlines: Sequence[Headline] = ()
    accuracy: Sequence[AccuracyAtN] = ()
    problems: int = 0
    aggregator: str = ""
    labels: Sequence[float] = ()
    labels_right: Sequence[bool] | None = None
    training: Sequence[TrainingPoint] = ()
    best: Sequence[JudgedSolution] = ()
    worst: Sequence[JudgedSolution] = ()
    policy: PolicyGain | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def extremes(
    groups: Sequence[Group], aggregate: str, count: int = 3, truth: StepTruth | None = None
) -> tuple[list[JudgedSolution], list[JudgedSolution]]:
    """The `count` solutions of highest and of lowest reward, best and worst first, at most one of each a problem."""

    def judged(position: int) -> Iterator[tuple[float, int, JudgedSolution]]:
        for index, group in enumerate(groups):
            scored = [
                (reward, candidate)
                for reward, candidate in zip(rewards(group, aggregate), group.candidates, strict=True)
                if candidate.scores is not None
            ]
            if not scored:
                continue
            reward, candidate = sorted(scored, key=lambda item: item[0])[position]
            right = truth(group.problem, candidate.steps) if truth else [None] * len(candidate.steps)
            steps = tuple(
                JudgedStep(text, score, mark)
                for text, score, mark in zip(candidate.steps, candidate.scores.scores, right, strict=True)
            )
            problem = group.problem
            yield (
                reward,
                index,
                JudgedSolution(problem.question, problem.answer, steps, reward, candidate.verdict, problem.pictures),
            )

    best = heapq.nlargest(count, judged(-1), key=lambda item: (item[0], -item[1]))
    worst = heapq.nsmallest(count, judged(0), key=lambda item: (item[0], item[1]))
    return [solution for *_, solution in best], [solution for *_, solution in worst]
