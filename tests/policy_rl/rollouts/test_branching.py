"""Test which prefixes of a group are continued, and that the choice does not depend on what follows them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmprm.types import Grading, Problem, Verdict
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards
from policy_rl.rewards.cutter import StepCutter
from policy_rl.rollouts.branching import choose_prefixes
from policy_rl.rollouts.config import BranchingConfig
from policy_rl.types import Response, Reward
from tests.policy_rl.byte_tokenizers import byte_level
from tests.policy_rl.corridor import played_response

TOKENIZER = byte_level()
CUTTER = StepCutter(TOKENIZER, "blank_lines", "")
LIMIT = 20


def graded(
    steps: Sequence[str], surprisals: Sequence[float] = (), scores: Sequence[float] = (), known: bool = True
) -> GradedResponse:
    """Return a response with one token per byte, whose steps have these mean surprisals and PRM scores."""
    text = "\n\n".join(steps)
    ids = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
    _, step_of_token = CUTTER.cut(Response(text, ids, [0.0] * len(ids), "stop"))
    logprobs = [-surprisals[step] for step in step_of_token] if surprisals else [-1.0] * len(ids)
    process = StepRewards(tuple(scores), step_of_token) if scores else None
    reward = Reward(1.0 if known else None, {"accuracy": 1.0})
    return GradedResponse(Response(text, ids, logprobs, "stop"), Grading(Verdict.CORRECT, "", ""), reward, process)


def chosen(responses: Sequence[GradedResponse], budget: int = 10**6, **settings) -> list[tuple[int, int]]:
    """Return (response, tokens) of the chosen prefixes."""
    group = GradedGroup(Problem("p", "?", "1"), 5, 0, tuple(responses))
    found = choose_prefixes(group, CUTTER, BranchingConfig(**settings), lambda each: LIMIT - each.tokens, budget)
    return [(each.response, each.tokens) for each in found]


def test_prefixes_end_with_a_step_before_the_last() -> None:
    # "a¶¶" has 3 tokens, "bc¶¶" 4 more.
    assert chosen([graded(["a", "bc", "d"]), graded(["e"])], choose="first") == [(0, 3), (0, 7)]


def test_each_step_takes_the_most_surprising_prefixes() -> None:
    responses = [graded(["a", "b", "c"], [1.0, 3.0, 9.0]), graded(["a", "b", "c"], [2.0, 1.0, 9.0])]
    assert chosen(responses) == [(0, 6), (1, 3)]


def test_undecided_prefixes_are_those_near_one_half() -> None:
    responses = [graded(["a", "b"], scores=scores) for scores in ((0.3, 0.5), (0.6, 0.5), (0.9, 0.5), (0.45, 0.5))]
    assert chosen(responses, choose="undecided", max_per_step=2) == [(1, 3), (3, 3)]
    assert chosen(responses, choose="undecided", max_per_step=9) == [(0, 3), (1, 3), (3, 3)]


def test_the_budget_is_charged_with_the_longest_continuations() -> None:
    # Two continuations of at most 20 − 3 tokens cost 34, and of at most 20 − 7 tokens 26.
    response = graded(["a", "bc", "d"])
    for budget, expected in ((34 + 26, [(0, 3), (0, 7)]), (34 + 25, [(0, 3)]), (33, [(0, 7)]), (25, [])):
        assert chosen([response], budget, choose="first", continuations=2) == expected


def test_turns_of_episodes_are_chosen_by_their_own_tokens() -> None:
    """Turns have two tokens, and observations between them one, of log-probability 0."""
    episodes = [played_response(("a", "b", "c"), (0, 0, 1), 1.0), played_response(("a", "b"), (0, 0), 0.0)]
    for each, values in zip(episodes, ((-1, -3, 0, -1, -1, 0, -9, -9), (-2, -3, 0, -9, -9)), strict=True):
        each.response.logprobs[:] = values
    assert chosen(episodes) == [(0, 5), (1, 2)]
    assert chosen(episodes, choose="first", max_per_step=2) == [(0, 2), (0, 5), (1, 2)]


def test_responses_without_reward_or_steps_are_not_continued() -> None:
    assert chosen([graded(["a", "b"], known=False), graded(["a"]), graded([""])], choose="first") == []


@pytest.mark.parametrize("rule", ["surprisal", "undecided", "first"])
def test_the_choice_of_a_prefix_does_not_depend_on_what_follows_it(rule: str) -> None:
    other = graded(["a", "b", "c"], [0.7, 0.6, 0.5], [0.4, 0.6, 0.5])
    rests = ((["x"], [9.0], [0.5]), (["x", "long step"], [0.1, 0.1], [0.1, 0.9]))
    choices = []
    for texts, surprisals, scores in rests:
        own = graded(["a", *texts], [0.5, *surprisals], [0.55, *scores])
        choices.append([each for each in chosen([own, other], choose=rule) if each[1] <= 3])
    assert choices[0] == choices[1] != []
