"""What the embedded world knows about labels and about sampled solutions: the truth that judges the whole road."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmprm.evaluation.first_error import Judged, first_error
from mmprm.evaluation.judging import step_outcomes
from mmprm.evaluation.label_quality import judged_labels, no_error_so_far
from mmprm.labels.parquet import LabelledExample
from mmprm.selection.groups import Group
from mmprm.tiny.world import judge_steps, truth_of
from mmprm.types import Problem


def steps_right(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """For each step of a solution, whether it is true (see world.judge_steps)."""
    return judge_steps(truth_of(problem), steps)


def errorless_so_far(problem: Problem, steps: Sequence[str]) -> list[bool | None]:
    """For each step of a solution, whether all steps up to it are true."""
    return no_error_so_far(steps_right(problem, steps))


def label_truth(examples: Iterable[LabelledExample]) -> tuple[list[float], list[bool]]:
    """Soft labels of the non-terminal labelled steps, and whether the solution has no error up to each of them."""
    labels, right = step_outcomes(judged_labels(examples, errorless_so_far, "tiny"))
    return labels.tolist(), right.tolist()


def judged_solutions(groups: Iterable[Group]) -> list[Judged]:
    """Every scored solution with the place of its true first error."""
    return [
        Judged(group.problem.id, candidate.scores, first_error(steps_right(group.problem, candidate.steps)))
        for group in groups
        for candidate in group.candidates
        if candidate.scores is not None
    ]
