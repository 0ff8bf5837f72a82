"""Evaluate labels and sampled solutions against the ground truth of the built-in toy world."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmprm.evaluation.label_quality import judged_labels, no_error_so_far
from mmprm.evaluation.labeled import LabeledSolution
from mmprm.evaluation.prm_evaluation import ScoredSolution, step_outcomes
from mmprm.labels.parquet import LabeledExample
from mmprm.selection.groups import CandidateGroup
from mmprm.tiny.world import judge_steps, truth_of
from mmprm.types import Problem, Solution


def steps_correct(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """Return whether each step of a solution is correct; see world.judge_steps."""
    return judge_steps(truth_of(problem), steps)


def errorless_so_far(problem: Problem, steps: Sequence[str]) -> list[bool | None]:
    """Return, for each step of a solution, whether this step and all earlier ones are correct."""
    return no_error_so_far(steps_correct(problem, steps))


def label_truth(examples: Iterable[LabeledExample]) -> tuple[list[float], list[bool]]:
    """Return the soft labels of all non-terminal labeled steps, and whether the solution is correct up to each step."""
    labels, correct = step_outcomes(judged_labels(examples, errorless_so_far, "tiny"))
    return labels.tolist(), correct.tolist()


def judged_solutions(groups: Iterable[CandidateGroup]) -> list[ScoredSolution]:
    """Return every scored solution with the correctness of each of its steps."""
    return [
        (
            LabeledSolution(
                Solution(group.problem, candidate.steps),
                tuple(steps_correct(group.problem, candidate.steps)),
                group.problem.id,
                "tiny",
            ),
            candidate.scores,
        )
        for group in groups
        for candidate in group.candidates
        if candidate.scores is not None
    ]
