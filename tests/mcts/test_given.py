"""Test the labeling of given solutions: worked examples, resuming, and the true first error."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mcts.given import GivenRoller, label_solution
from mcts.search import SearchConfig, SearchResult
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.trees.given import label_steps
from mmprm.trees.stopping import FirstErrorRule
from mmprm.types import Batch, Counts, GivenSolution, Grading, Problem, Rollout, Steps, Verdict

R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
CONFIG = SearchConfig(rollouts=2, batch=1, false_negative_rate=0)


class Script:
    """Answers from a table that maps a prefix to (steps, verdict) of its rollouts in order, and records the
    requests.
    """

    def __init__(self, solution: Verdict, table: dict[str, Sequence[tuple[str, Verdict]]]) -> None:
        self.solution = solution
        self.table = {prefix: list(answers) for prefix, answers in table.items()}
        self.asked: list[tuple[str, int]] = []

    async def grade(self) -> Rollout:
        return Rollout((), self.solution, 0, "")

    async def __call__(self, steps: Steps, n: int) -> tuple[Rollout, ...]:
        prefix = "".join(steps)
        self.asked.append((prefix, n))
        answers = [self.table[prefix].pop(0) for _ in range(n)]
        return tuple(Rollout(tuple(text), verdict, len(text), text) for text, verdict in answers)


async def run(
    solution: str,
    verdict: Verdict,
    table: dict[str, Sequence[tuple[str, Verdict]]],
    mode: str = "first_error",
    config: SearchConfig = CONFIG,
) -> tuple[str, list[tuple[str, int]], tuple[float | None, ...]]:
    """Return why labeling stopped, the requests as (prefix, n), and the label of each step."""
    script, given = Script(verdict, table), GivenSolution("p", tuple(solution), "author", mode)
    result = await label_solution(Problem("s", "question", "1", given=given), script, config)
    rule = FirstErrorRule(**config.model_dump(include=set(FirstErrorRule.model_fields)))
    labels = label_steps(result.tree, given, rule if mode == "first_error" else config)
    return result.ended, script.asked, tuple(None if counts is None else counts.value for counts in labels)


async def test_bisection_by_hand() -> None:
    """abc fails once, so its shorter prefixes are tried; it is recoverable at its second rollout, and abcd is not."""
    table = {"abc": [("z", W), ("z", R)], "a": [("z", R)], "ab": [("z", R)], "abcd": [("z", W), ("z", W)]}
    ended, asked, labels = await run("abcdef", W, table)
    assert asked == [("abc", 1), ("a", 1), ("ab", 1), ("abc", 1), ("abcd", 1), ("abcd", 1)]
    assert (ended, labels) == ("first error", (1, 1, 1, 0, None, 0))


async def test_a_correct_solution_is_checked_prefix_by_prefix() -> None:
    """A rollout from the question contains a and b like the solution, so only abc remains to be checked."""
    table = {"": [("z", W), ("abz", R)], "abc": [("z", R)]}
    assert await run("abcd", R, table) == ("no error", [("", 1), ("", 1), ("abc", 1)], (1, 1, 1, 1))


async def test_a_correct_solution_is_trusted_if_the_completer_is_too_weak() -> None:
    """Two failures are not enough to reject a step of a solution with a correct answer."""
    table = {"": [("z", W), ("z", R)], "a": [("z", W), ("z", W)]}
    assert (await run("abc", R, table))[::2] == ("no error", (1, 1, 1))
    assert (await run("abc", R, {"": [("z", W), ("z", W)]}))[::2] == ("no error", (1, 1, 1))


async def test_errors_that_cancel_are_found() -> None:
    """All 16 rollouts from the second prefix fail, although those from the first succeed."""
    table = {"": [("z", R)] * 4, "a": [("z", R)] * 4, "ab": [("z", W)] * 20}
    ended, asked, labels = await run("abcd", R, table, config=SearchConfig())
    assert sum(n for prefix, n in asked if prefix == "ab") == 16
    assert (ended, labels) == ("first error", (1, 0, None, 1))


async def test_a_solution_without_a_known_verdict_has_no_label() -> None:
    assert await run("abc", U, {}) == ("no known verdict", [], (None, None, None))


async def test_a_correct_rollout_proves_the_steps_that_it_shares() -> None:
    """A correct rollout from ab that contains c and d proves abcd, so only abcde remains to be sampled."""
    ended, asked, labels = await run("abcdef", W, {"abc": [("dz", R)], "abcde": [("z", W)] * 2})
    assert asked == [("abc", 1), ("abcde", 1), ("abcde", 1)]
    assert (ended, labels) == ("first error", (1, 1, 1, 1, 0, 0))


async def test_an_error_in_the_first_step_needs_a_problem_that_is_solved() -> None:
    failing = {"a": [("z", W), ("z", W)]}
    assert (await run("ab", W, failing | {"": [("z", W), ("z", R)]}))[::2] == ("first error", (0, 0))
    assert (await run("ab", W, failing | {"": [("z", W), ("z", W)]}))[::2] == ("too hard", (None, None))


async def test_a_late_proof_overrules_a_failure() -> None:
    """Both rollouts from ab fail by chance; a correct rollout from the question starts with ab and proves it
    correct.
    """
    table = {"ab": [("z", W)], "a": [("z", W)] * 2, "": [("abz", R)], "abc": [("z", W)] * 2}
    ended, asked, labels = await run("abcd", W, table)
    assert [prefix for prefix, _ in asked] == ["ab", "a", "a", "", "abc", "abc"]
    assert (ended, labels) == ("first error", (1, 1, 0, 0))


async def test_every_value_by_hand() -> None:
    """With K = 2 and false_negative_rate = 0, both rollouts are sampled from each prefix at once."""
    table = {"": [("z", R), ("z", R)], "a": [("z", R), ("z", W)], "ab": [("z", W), ("z", W)]}
    assert await run("abc", W, table, "values") == ("every step", [("", 2), ("a", 2), ("ab", 2)], (0.5, 0, 0))


async def test_the_budget_ends_the_labeling() -> None:
    """Only one rollout from abc fits into the budget, and one failure is not enough for a label."""
    config = CONFIG.model_copy(update={"max_rollouts": 3})
    table = {"abc": [("z", W)], "a": [("z", R)], "ab": [("z", R)]}
    ended, asked, labels = await run("abcdef", W, table, config=config)
    assert (ended, len(asked), labels) == ("rollout budget", 3, (1, 1, None, None, None, 0))


async def test_rollouts_without_a_known_verdict_are_replaced_and_end_the_labeling() -> None:
    assert await run("ab", W, {"a": [("z", U), ("z", U)]}) == ("no known verdict", [("a", 1)] * 2, (None, None))


def write(problem: Problem, prefix: str, rng: random.Random) -> str:
    """Return up to eight steps and the answer. Each step is bad with probability 1/12, and bad steps cannot be
    repaired.
    """
    good, text = "bad" not in prefix, ""
    for _ in range(prefix.count("<step>"), 8):
        good = good and rng.random() > 1 / 12
        text += f"<step>{'good' if good else 'bad'} {rng.randrange(3)}</step>"
    return text + f"<answer>{'right' if good else 'wrong'}</answer>"


class AnswerGrader:
    async def grade(self, problem: Problem, response: str) -> Grading:
        return Grading(R if "<answer>right</answer>" in response else W, None, "exact")


def given_problem(bad: int, mode: str = "first_error") -> Problem:
    """Return a problem with an eight-step solution whose first bad step is at index `bad`."""
    steps = [f"<step>{'good' if number < bad else 'bad'} 9</step>" for number in range(8)]
    given = GivenSolution("p", (*steps, f"<answer>{'right' if bad == 8 else 'wrong'}</answer>"), None, mode)
    return Problem(f"s{bad}", "question", "right", given=given)


async def label(problem: Problem, stored: list[Batch], log: list[Batch]) -> tuple[SearchResult, ScriptedSampler]:
    sampler = ScriptedSampler(write)
    roller = GivenRoller(problem, sampler, AnswerGrader(), "tags", 7, stored, log.append)
    return await label_solution(problem, roller, SearchConfig()), sampler


@pytest.mark.parametrize("bad", range(9))
async def test_finds_the_true_first_error(bad: int) -> None:
    problem = given_problem(bad)
    assert problem.given is not None
    result, _ = await label(problem, [], [])
    labels = label_steps(result.tree, problem.given, FirstErrorRule())
    values = [None if counts is None else counts.value for counts in labels]
    assert values[: min(bad, 8) + 1] == [1.0] * bad + [0.0 if bad < 8 else 1.0]


@pytest.mark.parametrize("mode", ["first_error", "values"])
async def test_resuming_samples_only_what_is_missing(mode: str) -> None:
    log: list[Batch] = []
    whole, _ = await label(given_problem(3, mode), [], log)
    assert len(log) > 4
    for kept in range(len(log) + 1):
        new: list[Batch] = []
        result, sampler = await label(given_problem(3, mode), log[:kept], new)
        assert (result, new) == (whole, log[kept:])
        assert len(sampler.requests) == sum(bool(batch.rollouts[0].text) for batch in new)


async def test_requests_carry_the_rest_of_the_solution() -> None:
    problem = given_problem(3)
    assert problem.given is not None
    _, sampler = await label(problem, [], [])
    assert {request.prefix + request.continuation for request in sampler.requests} == {"".join(problem.given.steps)}


def test_a_proven_step_counts_as_one_correct_rollout() -> None:
    from mmprm.trees.given import first_error_labels
    from mmprm.types import Node

    nodes = [
        Node(tuple("abc"), (Counts(0, 1),), (Rollout((), W, 0, ""),)),
        Node(tuple("ab"), (Counts(3, 1),), (Rollout((), R, 0, ""),)),
    ]
    assert first_error_labels(nodes, tuple("abc"), FirstErrorRule()) == (
        Counts(1),
        Counts(3, 1, estimate=1.0),
        Counts(0, 1),
    )
