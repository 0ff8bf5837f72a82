"""Check that a problem file's gold answers can be graded, before any engine starts."""

from __future__ import annotations

from collections.abc import Sequence

from mmprm.errors import DataError
from mmprm.grading import choice
from mmprm.grading.labels import compare_labels
from mmprm.grading.reading import has_prose, read_answer
from mmprm.grading.symbolic import GraderConfig, opened, options
from mmprm.grading.text import clean
from mmprm.grading.wording import core, stated_values
from mmprm.types import Problem

_MAX_WORDS = 3
"""Maximum number of words in a gold answer that responses can be expected to match word for word."""


def check_golds(problems: Sequence[Problem], config: GraderConfig, location: str) -> None:
    """Raise DataError unless a judge is configured or at least one gold answer can be graded symbolically."""
    if config.judge is not None or any(is_decidable(problem, config) for problem in problems):
        return
    gold = problems[0].answer
    raise DataError(
        f"{location}: none of the {len(problems):,} answers can be graded, for example {gold[:200]!r}: symbolic "
        "comparison cannot compare sentences; give short answers (a value, a letter, a few words), name the column "
        "that holds them, or set grader.judge"
    )


def is_decidable(problem: Problem, config: GraderConfig) -> bool:
    """Return whether symbolic comparison can distinguish correct from incorrect answers to a problem."""
    gold = opened(problem.answer)
    if options(problem) or choice.gold_letters(gold) or gold in config.labels:
        return True
    if len(gold) > config.max_length:
        return False
    line = " ".join(clean(line) for line in gold.splitlines())
    if compare_labels(line, "") is not None or len(line.split()) <= _MAX_WORDS:
        return True
    text, _ = core(line)
    return not has_prose(read_answer(text)) or len(set(stated_values(text))) == 1
