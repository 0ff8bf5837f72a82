"""Define PRMBench: its categories, the layout of its records, and its PRM score.

Source: Song et al., PRMBench (2025), and its released evaluation code. Results follow that code: solutions of the same
category and `idx` count once, error steps beyond the last step are ignored, and the unmodified solutions are not
scored.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mmprm.metrics import MacroF1, macro_f1

CATEGORY_GROUPS = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
"""Maps each group of categories to its categories, as the data set spells them. A group's score is their mean."""


class PrmBenchRecord(NamedTuple):
    """Holds the contents of a PRMBench record. `key` identifies its solution among all records."""

    question: str
    steps: list[str]
    correct: list[bool]
    category: str
    key: tuple[str, str]


def read_prmbench_record(record: dict[str, Any]) -> PrmBenchRecord:
    """Parse a record of PRMBench, whose `error_steps` are numbered from 1."""
    errors, category = set(record["error_steps"]), record["classification"]
    if not all(type(number) is int for number in errors):
        raise ValueError(f"error_steps={record['error_steps']!r} must be numbers of steps")
    steps = record["modified_process"]
    correct = [number not in errors for number in range(1, len(steps) + 1)]
    return PrmBenchRecord(record["modified_question"], steps, correct, category, (category, str(record["idx"])))


def prm_score(claimed_K: ArrayLike, correct_K: ArrayLike) -> MacroF1:
    """Return the PRM score: the mean of the F1 on correct steps and the F1 on incorrect steps.

    If no step is incorrect, as in the category multi_solutions, it is the F1 on correct steps.
    """
    claimed_K, correct_K = np.asarray(claimed_K, dtype=bool), np.asarray(correct_K, dtype=bool)
    if not correct_K.size or not correct_K.all():
        return macro_f1(claimed_K, correct_K)
    found, count = int(claimed_K.sum()), len(correct_K)
    on_correct = 2 * found / (found + count)
    return MacroF1(on_correct, on_correct, math.nan, count, 0)
