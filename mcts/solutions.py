"""Read the solutions whose steps `mmprm annotate --solutions` labels."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from mmprm.data.cells import Row, cut
from mmprm.data.rows import RowsConfig
from mmprm.errors import DataError
from mmprm.problems import ProblemReader, ProblemsConfig, content_id, image_folder, load_problems, read_rows
from mmprm.steps import StepFormat, plain, split, write_steps
from mmprm.types import GivenSolution, Problem, Steps

_COLUMNS = ("solution_id", "author", "steps", "response")


class SolutionsConfig(RowsConfig):
    """Configures where existing solutions are read from, and how their steps are labeled."""

    mode: Literal["first_error", "values"] = "first_error"
    """What to determine. first_error: the first error of each solution, by bisection; values: the value of every
    step."""
    author: str | None = None
    """Who wrote the solutions, such as the name of a model, for rows without a column `author`."""
    invalid: Literal["error", "drop"] = "error"
    """How to handle a row without a usable solution or problem: stop with an error that names its line, or drop and
    count it."""


def load_solutions(config: SolutionsConfig, problems: ProblemsConfig, step_format: StepFormat) -> list[Problem]:
    """Return one problem per given solution, in file order; the problem stores the solution in `given` and has the
    solution's id.

    If both configurations have the same path, each row holds its problem; otherwise, its `problem_id` (or `id`) refers
    to a problem of the other file. Exact duplicates are dropped with a note.

    Raises DataError, with file and line, for a row without a problem or a solution that can be split into steps, and if
    two different problems or solutions have the same id.
    """
    problem_of = _own_problems(problems) if config.path == problems.path else _known_problems(problems)
    found: dict[str, tuple[str, Problem]] = {}
    repeated, dropped = [], []
    for location, row in read_rows(config):
        try:
            solution = _solution(problem_of(row, location), row, config, step_format, location)
        except DataError as error:
            if config.invalid == "error":
                raise
            dropped.append(str(error))
            continue
        first, before = found.setdefault(solution.id, (location, solution))
        if before is solution:
            continue
        if before != solution:
            raise DataError(
                f"{location}: solution_id {cut(solution.id)!r} belongs to another solution already, at {first}; make "
                "the ids unique, or remove the column to derive ids from the content"
            )
        repeated.append(f"{location} is {first}")
    if dropped:
        print(f"{len(dropped):,} invalid solutions are left out; {dropped[0]}", file=sys.stderr)
    if repeated:
        print(f"{len(repeated):,} duplicate solutions are left out; {repeated[0]}", file=sys.stderr)
    if not found:
        raise DataError(f"{config.path}: holds no usable solution; check the path and the columns steps or response")
    return [solution for _, solution in found.values()]


ProblemOf = Callable[[Row, str], Problem]
"""Function from (row, location) to the problem that the row's solution answers."""


def _known_problems(config: ProblemsConfig) -> ProblemOf:
    """Look up problems by the id in the row."""
    known = {problem.id: problem for problem in load_problems(config)}

    def look_up(row: Row, location: str) -> Problem:
        name = row.get("problem_id", row.get("id"))
        if str(name) in known:
            return known[str(name)]
        raise DataError(
            f"{location}: problem_id={cut(name)!r} must be the id of a problem in {config.path}; correct the row, or "
            "leave out problems.path if the rows hold the problems themselves"
        )

    return look_up


def _own_problems(config: ProblemsConfig) -> ProblemOf:
    """Read the problem from the row itself."""
    reader = ProblemReader(config.columns, image_folder(config), video_frames=config.video_frames)
    seen: dict[str, tuple[str, str, Problem]] = {}

    def read(row: Row, location: str) -> Problem:
        left_out = {*_COLUMNS, *(["id"] if "problem_id" in row else [])}
        problem = reader.problem({name: cell for name, cell in row.items() if name not in left_out}, location)
        content = content_id(problem.question, problem.answer, problem.media, problem.choices)
        first, other, same = seen.setdefault(problem.id, (location, content, problem))
        if other != content:
            raise DataError(
                f"{location}: id {cut(problem.id)!r} belongs to another problem already, at {first}; name the problem "
                "in problem_id and the solution in solution_id"
            )
        # In memory, the solutions of a problem share its media.
        return replace(problem, images=same.images, videos=same.videos, audios=same.audios)

    return read


def _solution(problem: Problem, row: Row, config: SolutionsConfig, step_format: StepFormat, location: str) -> Problem:
    steps = _steps(row, step_format, location)
    author = row.get("author") or config.author
    if author is not None and not isinstance(author, str):
        raise DataError(f"{location}: author must be text, got {cut(author)!r}; correct it or remove the column")
    name = row.get("solution_id", row.get("id") if "problem_id" in row else None)
    if name in (None, ""):
        digest = hashlib.sha256(json.dumps([problem.id, author, steps]).encode()).hexdigest()
        name = f"{problem.id}-{digest[:8]}"
    given = GivenSolution(problem.id, steps, author, config.mode)
    return replace(problem, id=str(name), given=given, extra={})


def _steps(row: Mapping[str, Any], step_format: StepFormat, location: str) -> Steps:
    """Return the steps with their markup, from the column `response` or, if it is missing or empty, from `steps`."""
    response, steps = row.get("response"), row.get("steps")
    if isinstance(response, str) and response.strip():
        found, column = split(response, step_format), "response"
    elif isinstance(steps, list) and steps and all(isinstance(step, str) and step.strip() for step in steps):
        found, column = write_steps(steps, step_format), "steps"
    else:
        raise DataError(
            f"{location}: must have a text in response or a list of texts in steps, none of them empty; add one, or "
            "set solutions.invalid=drop"
        )
    if found.steps and all(plain(step, step_format) for step in found.steps):
        return found.steps
    raise DataError(
        f"{location}: {column} cannot be split into steps ({found.reason or 'empty step'}) with "
        f"step_format={step_format}; set the step_format of the solutions, or solutions.invalid=drop"
    )
