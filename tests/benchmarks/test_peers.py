"""Test the comparison with MM-PRM's code: which states count as its labels, and the metrics of a row."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))

import mm_prm
import mm_prm_worker

from mmprm.tiny.world import make_problems, solve


def state(steps: tuple[str, ...], correct: int, incorrect: int, *children: Any) -> Any:
    """Build a state of the checkout's tree. `steps` is its whole prefix, which begins with the question."""
    return SimpleNamespace(
        num_correct_rollouts=correct,
        num_incorrect_rollouts=incorrect,
        children=list(children),
        get_solution_prefix=lambda: ("question", *steps),
    )


def test_only_states_with_rollouts_count_once_per_prefix() -> None:
    complete = state(("a=1", "1"), 0, 0)
    root = state((), 3, 1, state(("a=1",), 2, 2, complete, state(("a=1", "b=2"), 0, 4)), state(("a=1",), 1, 3))
    assert mm_prm_worker.distinct_labels(root) == [
        {"steps": ("a=1",), "correct": 3, "rollouts": 8},
        {"steps": ("a=1", "b=2"), "correct": 0, "rollouts": 4},
    ]


def test_the_previous_steps_of_a_prompt_become_the_prefix() -> None:
    asked = []

    class Sampler:
        async def sample(self, request: Any) -> tuple[Any, ...]:
            asked.append((request.prefix, request.n))
            return (SimpleNamespace(text="<step> b=2 </step><answer>3</answer>", token_count=7),) * request.n

    engine = mm_prm_worker.SameEngine(Sampler())
    engine.problem = SimpleNamespace(id="p")
    prompt = "Question: red + blue?\nPrevious Steps:<step>red + blue?</step><step>a=1</step>"
    assert engine.generate_results(prompt, None, 2) == [["b=2", "3"]] * 2
    assert engine.generate_results("Question: red + blue?", None, 1) == [["b=2", "3"]]
    assert asked == [("<step>a=1</step>", 2), ("", 1)]
    assert engine.tokens == 21


def test_a_row_names_the_mix_of_its_labels() -> None:
    problems = {tiny.problem.id: tiny.problem for tiny in make_problems(2, 0, "annotate")}
    labels = []
    for tiny in make_problems(2, 0, "annotate"):
        first, *_ = solve(tiny)
        labels += [(tiny.problem.id, (first,), 0.9, 16), (tiny.problem.id, ("<step>white=0</step>",), 0.1, 5)]
    measured = {"tokens": 400, "rollouts": 50, "seconds": 2.0, "seconds_with_start": 4.0}
    row = mm_prm.row_of(labels, measured, problems)
    assert (row["tokens_per_label"], row["labels_per_second"], row["labels_per_second_with_start"]) == (100, 2, 1)
    assert row["share_below_16_rollouts"] == 0.5
    assert row["auc"]["value"] == pytest.approx(1.0)
    assert "auc" not in mm_prm.row_of(labels, measured, None)
