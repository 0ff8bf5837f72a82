"""Test the search of one problem: worked examples, first errors, budgets, and replay."""

from __future__ import annotations

import random

import pytest

from mcts.roll import Roller
from mcts.search import SearchConfig, SearchResult, search
from mcts.tree import SearchCandidate, SearchTree
from mmprm.config import build
from mmprm.errors import ConfigError
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.types import Batch, Counts, Grading, Problem, Rollout, Steps, Verdict

PROBLEM = Problem("p", "question", "right")
R, W, U = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN


def rollout(text: str, verdict: Verdict) -> Rollout:
    """Return a rollout with one letter per step."""
    return Rollout(tuple(text), verdict, len(text), text, None if text else "no step")


class Script:
    """Answers from a table that maps each prefix to rollouts, and records the order of the requests."""

    def __init__(self, table: dict[str, list[tuple[str, Verdict]]]) -> None:
        self.table = table
        self.asked: list[str] = []

    async def __call__(self, steps: Steps, n: int) -> tuple[Rollout, ...]:
        self.asked.append("".join(steps))
        answers = self.table["".join(steps)]
        assert len(answers) == n
        return tuple(rollout(*answer) for answer in answers)


async def run(table: dict[str, list[tuple[str, Verdict]]], **settings: int) -> tuple[SearchResult, list[str]]:
    script = Script(table)
    return await search(
        PROBLEM, script, SearchConfig(rollouts=2, false_negative_rate=0, min_shared_rollouts=None, **settings)
    ), script.asked


async def test_order_by_hand() -> None:
    result, asked = await run(
        {
            "": [("!", R), ("abcdef", W)],
            "abc": [("z", W), ("z", W)],  # middle of 0..6; value 0: the error is in abc
            "a": [("!", R), ("xyz", W)],  # middle of 0..3; value 1/2: it is after a
            "ab": [("!", R), ("!", R)],  # middle of 1..3; value 1: it is c
            "ax": [("z", W), ("z", U)],  # then the candidate of state a: middle of 1..4; value 0: it is x
        }
    )
    assert asked == ["", "abc", "a", "ab", "ax"]
    assert result.ended == "no candidates left"
    assert [("".join(node.steps), node.counts) for node in result.tree.nodes] == [
        ("", Counts(1, 1)),
        ("abc", Counts(0, 2)),
        ("a", Counts(1, 1)),
        ("ab", Counts(2, 0)),
        ("ax", Counts(0, 1, 1)),
    ]


async def test_identical_prefixes_are_one_state() -> None:
    """The second incorrect rollout shares its first step with the first one, so a is sampled from once."""
    _, asked = await run(
        {
            "": [("!", R), ("abc", W)],
            "a": [("!", R), ("bxy", W)],
            "ab": [("!", R), ("!", R)],
            "abx": [("!", R), ("!", R)],
        }
    )
    # abc: middle of 0..3 is a, of 1..3 ab. abxy from a: middle of 1..4 is ab (known), of 2..4 abx.
    assert asked == ["", "a", "ab", "abx"]


@pytest.mark.parametrize(
    ("root", "ended"),
    [
        ([("ab!", R), ("!", R)], "too easy"),
        ([("ab!", R), ("ab!", U)], "too easy"),
        ([("ab", W), ("cd", W)], "too hard"),
        ([("ab", U), ("cd", U)], "no known verdict"),
        ([("!", R), ("", W)], "no candidates left"),
        ([("!", R), ("w", W)], "no candidates left"),
    ],
)
async def test_roots_that_end_the_search(root: list[tuple[str, Verdict]], ended: str) -> None:
    result, asked = await run({"": root})
    assert (result.ended, asked) == (ended, [""])


async def test_a_state_of_unknown_verdicts_has_no_value_and_answers_nothing() -> None:
    result, asked = await run({"": [("!", R), ("abcd", W)], "ab": [("z", U), ("z", U)]})
    assert asked == ["", "ab"]
    assert result.tree.nodes[1].counts.value is None


async def test_budgets() -> None:
    table = {"": [("!", R), ("abcd", W)], "ab": [("!", R), ("cde", W)], "abc": [("!", R), ("!", R)]}
    result, asked = await run(table, max_rollouts=5)
    assert (result.ended, asked) == ("rollout budget", ["", "ab"])
    result, asked = await run(table, max_searches=1)
    assert (result.ended, asked) == ("search budget", ["", "ab", "abc"])


def test_budget_must_hold_the_root() -> None:
    with pytest.raises(ConfigError, match="max_rollouts=8 must be at least rollouts=20"):
        build(SearchConfig, {"max_rollouts": 8})


def write(problem: Problem, prefix: str, rng: random.Random) -> str:
    """Return eight steps and the answer; each step is bad with probability 1/12, and no later step repairs it."""
    good = "bad" not in prefix
    text = ""
    for _ in range(prefix.count("<step>"), 8):
        good = good and rng.random() > 1 / 12
        text += f"<step>{'good' if good else 'bad'} {rng.randrange(3)}</step>"
    return text + f"<answer>{'right' if good else 'wrong'}</answer>"


class AnswerGrader:
    async def grade(self, problem: Problem, response: str) -> Grading:
        correct = f"<answer>{problem.answer}</answer>" in response
        return Grading(R if correct else W, None, "exact")


def roller(problem: Problem, stored: list[Batch], emit: list[Batch]) -> tuple[Roller, ScriptedSampler]:
    sampler = ScriptedSampler(write)
    return Roller(problem, sampler, AnswerGrader(), "tags", 7, stored, emit.append), sampler


@pytest.mark.parametrize("number", range(5))
async def test_finds_the_true_first_error(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state gets its true value, which is 0 exactly after a bad step, and each first bad step is located.

    All sixteen rollouts of a recoverable state fail with probability (1 − (11/12)^8)^16 = 3e-5.
    """
    searched: list[Steps] = []
    select = SearchTree.select

    def spy(tree: SearchTree) -> SearchCandidate | None:
        candidate = select(tree)
        assert candidate is not None
        searched.append(candidate.state.steps + candidate.rollout.steps)
        return candidate

    monkeypatch.setattr(SearchTree, "select", spy)
    roll, _ = roller(Problem(f"p{number}", "question", "right"), [], [])
    result = await search(
        PROBLEM,
        roll,
        SearchConfig(false_negative_rate=0, min_shared_rollouts=None, max_searches=12, max_rollouts=10_000),
    )
    nodes = {node.steps: node for node in result.tree.nodes}
    assert len(nodes) > 10
    for steps, node in nodes.items():
        assert node.counts.known == 20
        assert (node.counts.value == 0) == ("bad" in "".join(steps))
    assert len(searched) == 12
    for steps in searched:
        first_bad = next(i for i, step in enumerate(steps) if "bad" in step)
        assert steps[:first_bad] in nodes
        assert steps[: first_bad + 1] in nodes
        assert steps not in nodes, "a complete solution is not a state"


@pytest.mark.parametrize(
    "config",
    [SearchConfig(max_rollouts=400, false_negative_rate=0, min_shared_rollouts=None), SearchConfig(max_rollouts=400)],
    ids=["fixed", "adaptive"],
)
async def test_replay_equals_the_undisturbed_run(config: SearchConfig) -> None:
    """A search stopped after any number of batches resumes to the same tree and samples only the missing batches."""
    log: list[Batch] = []
    roll, _ = roller(PROBLEM, [], log)
    whole = await search(PROBLEM, roll, config)
    assert len(log) > 15
    for kept in range(len(log) + 1):
        new: list[Batch] = []
        roll, sampler = roller(PROBLEM, log[:kept], new)
        assert await search(PROBLEM, roll, config) == whole
        assert new == log[kept:]
        assert len(sampler.requests) == len(new)


async def test_rollouts_keep_their_text_and_why_it_was_not_split() -> None:
    texts = iter(["<step>x</step><answer>right</answer>", "<step>x"])
    log: list[Batch] = []
    sampler = ScriptedSampler(lambda *_: next(texts))
    roll = Roller(PROBLEM, sampler, AnswerGrader(), "tags", 7, [], log.append)
    good, cut = await roll(("<step>a</step>",), 2)
    assert good == Rollout(
        ("<step>x</step>", "<answer>right</answer>"), R, 1, "<step>x</step><answer>right</answer>", None, "exact"
    )
    assert (cut.steps, cut.text, cut.unsplit, cut.verdict) == ((), "<step>x", "unclosed step", W)
    assert [(batch.steps, batch.first_sample) for batch in log] == [(("<step>a</step>",), 0)]
    assert (sampler.requests[0].prefix, sampler.requests[0].n) == ("<step>a</step>", 2)
