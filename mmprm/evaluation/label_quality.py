"""Evaluate soft labels against known step correctness, treating them like scores: P(no error up to the step)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mmprm.evaluation.labeled import LabeledSolution
from mmprm.evaluation.prm_evaluation import ScoredSolution
from mmprm.labels.parquet import LabeledExample
from mmprm.types import Problem, Solution, Steps, StepScores

KnownSteps = Callable[[Problem, Steps], Sequence[bool | None]]
"""Function that returns, for each step of a solution, whether all steps up to it are correct, or None if unknown."""


def no_error_so_far(correct_S: Iterable[bool | None]) -> list[bool | None]:
    """Convert "step is correct" to "no error up to this step".

    The result is False from the first incorrect step on, and None from the first unjudged step up to there.
    """
    found: list[bool | None] = []
    for correct in correct_S:
        before = found[-1] if found else True
        if before is False or correct is False:
            found.append(False)
        else:
            # After an unjudged step, nothing is known even if this step is correct: the unjudged step may be incorrect.
            found.append(None if before is None else correct)
    return found


def known_from(solutions: Iterable[LabeledSolution]) -> KnownSteps:
    """Build a KnownSteps function that applies human judgments to all solutions that begin with the same steps."""
    prefixes: dict[tuple[str, Steps], bool | None] = {}
    for labeled in solutions:
        question, steps = labeled.solution.problem.question.strip(), labeled.solution.steps
        for depth, correct in enumerate(no_error_so_far(labeled.correct), start=1):
            if correct is not None:
                prefixes[question, _stripped(steps[:depth])] = correct

    def known(problem: Problem, steps: Steps) -> list[bool | None]:
        plain, question = _stripped(steps), problem.question.strip()
        return [prefixes.get((question, plain[:depth])) for depth in range(1, len(plain) + 1)]

    return known


def judged_labels(examples: Iterable[LabeledExample], known: KnownSteps, source: str) -> list[ScoredSolution]:
    """Return each labeled path, restricted to the steps that have a label and whose correctness is known.

    A complete solution's last step is excluded, because its label is the verdict on the answer, not an estimate.
    """
    judged = []
    for example in examples:
        path = example.path
        correct = list(known(example.problem, path.steps))
        if path.complete:
            correct[-1] = None
        labels = [None if counts is None else counts.value for counts in path.counts]
        pairs = [(label, mark) for label, mark in zip(labels, correct, strict=True) if None not in (label, mark)]
        if pairs:
            values, marks = zip(*pairs, strict=True)
            solution = Solution(example.problem, path.steps)
            judged.append((LabeledSolution(solution, marks, example.problem.id, source), StepScores(values)))
    return judged


def _stripped(steps: Steps) -> Steps:
    return tuple(step.strip() for step in steps)
