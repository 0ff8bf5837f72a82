"""Test the calculations of the real-model benchmark on worked numbers."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from benchmarks.real import annotate, best_of_n, page, prm, rollouts
from benchmarks.real.annotated import Annotated, sample_states
from benchmarks.real.flat import search_flat
from benchmarks.real.problems import make_problems
from benchmarks.real.sft import conversations
from benchmarks.real.workspace import MAX_TOKENS
from mcts.search import SearchConfig
from mmprm.metrics import NO_ERROR
from mmprm.trees.tallies import ProblemTally
from mmprm.types import Counts, Problem, Rollout, Verdict


def run_of(tokens: dict[str, int], labels: dict[str, int]) -> Annotated:
    states = {(p, (f"step {i}",)): Counts(1, 1) for p, count in labels.items() for i in range(count)}
    problems = {p: ProblemTally(p, "done", "", 0, labels[p], 0, count, 0) for p, count in tokens.items()}
    return Annotated(states, problems, 1.0)


def test_the_token_ratio_divides_tokens_per_label():
    run, other = run_of({"a": 100, "b": 200}, {"a": 2, "b": 4}), run_of({"a": 300, "b": 300}, {"a": 3, "b": 3})
    assert annotate.token_ratio(run, other).value == pytest.approx((300 / 6) / (600 / 6))


def test_the_token_ratio_of_a_run_with_itself_is_one_in_every_resample():
    run = run_of({"a": 100, "b": 200, "c": 50}, {"a": 2, "b": 1, "c": 3})
    interval = annotate.token_ratio(run, run)
    assert interval.low == interval.high == 1


def test_a_budget_keeps_the_first_problems_that_fit():
    kept = run_of({"a": 100, "b": 200, "c": 50}, {"a": 2, "b": 1, "c": 3}).within(300)
    assert list(kept.problems) == ["a", "b"]
    assert kept.tokens == 300
    assert len(kept.labels) == 3


def test_campaigns_are_compared_on_the_problems_of_both():
    run = run_of({"a": 100, "b": 200, "c": 50}, {"a": 2, "b": 1, "c": 3})
    found = annotate.on_same_problems({"adaptive": run, "fixed": run_of({"b": 90, "a": 80}, {"a": 1, "b": 1})})
    assert {name: list(each.problems) for name, each in found.items()} == {"adaptive": ["b", "a"], "fixed": ["b", "a"]}
    assert len(found["adaptive"].labels) == 3


def test_label_errors_against_fresh_values():
    states = [("a", ("x",)), ("b", ("y",))]
    labels = {states[0]: Counts(3, 1), states[1]: Counts(1, 3)}
    found = annotate.errors(labels, states, {states[0]: 0.65, states[1]: 0.45})
    assert found["bias"]["value"] == pytest.approx((0.1 - 0.2) / 2)
    assert found["rmse"]["value"] == pytest.approx(((0.01 + 0.04) / 2) ** 0.5)


def test_sampled_states_do_not_depend_on_the_order_of_labels():
    states = [(str(i), ("x",)) for i in range(20)]
    shuffled = random.Random(1).sample(states, 20)
    assert sample_states(states, 5, 0) == sample_states(shuffled, 5, 0)


def judged(claims: list[int]) -> prm.Judged:
    truth = [0, 1, NO_ERROR, NO_ERROR]
    return prm.Judged(["a", "a", "b", "c"], np.array(claims), np.array(truth), 0.5, 0)


def test_the_difference_of_first_error_f1():
    perfect, half = judged([0, 1, NO_ERROR, NO_ERROR]), judged([0, 0, NO_ERROR, 1])
    assert prm.f1_difference(perfect, half).value == pytest.approx(1 - 0.5)
    assert prm.f1_summary(half)["on_bad"] == 0.5


def test_shares_of_rollouts():
    found = rollouts.shares(
        [("no step", False, 10), (None, True, 10), (None, False, MAX_TOKENS), (None, False, MAX_TOKENS - 1)]
    )
    assert [found[key]["share"] for key in ("unsplittable", "unknown", "truncated")] == [0.25, 0.25, 0.25]


def test_gains_are_paired_by_problem():
    trained = {key: np.array([1.0, 0.5, 0.0]) for key in best_of_n.SHOWN} | {"majority": np.array([0.5, 0.0, 0.0])}
    plain = {key: np.array([0.9, 0.4, -0.1]) for key in best_of_n.SHOWN}
    found = best_of_n.differences(trained, plain, 8)
    assert found["weighted_minus_majority_8"] == pytest.approx(1 / 3)
    assert found["trained_minus_untrained_8_interval"] == pytest.approx([0.1, 0.1])


def search_of(rollouts_of_root: list[Rollout]):
    asked: list[tuple[tuple[str, ...], int]] = []

    async def roll(steps, n):
        asked.append((steps, n))
        return tuple(rollouts_of_root) if not steps else (Rollout(("z",), Verdict.CORRECT, 1, "z"),) * n

    config = SearchConfig(rollouts=len(rollouts_of_root), false_negative_rate=0, min_shared_rollouts=None)
    return asyncio.run(search_flat(Problem("p", "q", "1"), roll, config)), asked


def test_flat_monte_carlo_samples_after_every_step_but_the_last():
    solutions = [
        Rollout(("a", "b", "c"), Verdict.CORRECT, 3, "abc"),
        Rollout(("a", "d", "e"), Verdict.INCORRECT, 3, "ade"),
    ]
    result, asked = search_of(solutions)
    assert asked == [((), 2), (("a",), 2), (("a", "b"), 2), (("a", "d"), 2)]
    assert [node.steps for node in result.tree.nodes] == [(), ("a",), ("a", "b"), ("a", "d")]


def test_flat_monte_carlo_leaves_out_problems_that_are_always_solved():
    result, asked = search_of([Rollout(("a", "b"), Verdict.CORRECT, 2, "ab")] * 2)
    assert result.ended == "too easy"
    assert len(asked) == 1


def test_conversations_alternate_between_the_step_formats():
    rows = [row["messages"] for row in conversations(make_problems("sft", 4), 0)]
    assert [messages[-1]["content"].startswith("<step>") for messages in rows] == [True, False, True, False]
    assert len({messages[0]["content"] for messages in rows}) == 2


def test_the_results_replace_those_of_an_earlier_run():
    text = "# Page\n\n## Results\n\nold\n\n## What did not work\nmuch\n"
    assert page.with_results(text, "new\n") == "# Page\n\n## Results\n\nnew\n\n## What did not work\nmuch\n"


def test_a_table_of_results():
    found = {"labels": {"auc": 0.874, "auc_interval": [0.855, 0.893], "auc_by_rollouts": {}}}
    assert page.table(("metric", "measured", "target"), page.metrics(found)) == (
        "| metric | measured | target |\n|---|---|---|\n| AUC of labels | 0.874 (0.855 to 0.893) | at least 0.85 |\n"
    )
