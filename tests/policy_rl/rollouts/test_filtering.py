"""Test the online filter, carried-over groups, the order of problems, the ADORA weight and the schedule."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripted_rl import PROBLEMS, ScriptedGrader, ScriptedPool, make_config

from mmprm.types import Grading, Problem, Verdict
from policy_rl.algorithms.adora import adora_weight
from policy_rl.collector import Collector
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards, from_json, to_json
from policy_rl.rollouts.curriculum import FilterConfig, Phase, Prompts, groups_to_ask, phase_of, update_count
from policy_rl.trainer.batch import Limits
from policy_rl.types import Response, Reward

WEIGHED = {"loss": {"importance_cap": 2.0}}


def group(accuracies: Sequence[float | None], lengths: Sequence[int] | None = None, limit: int = 1000) -> GradedGroup:
    """Return a group; a reward of None means no verdict. Responses of `limit` tokens are truncated."""
    lengths = lengths or [3] * len(accuracies)
    responses = tuple(
        GradedResponse(
            Response("text", tuple(range(length)), (0.0,) * length, "length" if length == limit else "stop"),
            Grading(Verdict.UNKNOWN if each is None else Verdict(int(each)), None, ""),
            Reward(each, {"accuracy": each}),
        )
        for each, length in zip(accuracies, lengths, strict=True)
    )
    return GradedGroup(PROBLEMS[0], 5, 0, responses)


def test_groups_of_middling_accuracy_are_kept() -> None:
    """Only known verdicts count: one correct of ten is 0.1, the inclusive lower bound."""
    config = FilterConfig()
    assert config.verdict(group([1] + [0] * 9)) is None
    assert config.verdict(group([1] + [0] * 10)) == "too_hard"
    assert config.verdict(group([1] * 9 + [0])) is None
    assert config.verdict(group([1] * 8)) == "too_easy"
    assert config.verdict(group([1, 1, None, None])) == "too_easy", "unknown is not incorrect"
    assert config.verdict(group([1, 0, None])) is None


def test_how_many_groups_a_round_asks_for() -> None:
    assert groups_to_ask(32, 0, 0, 32) == 32, "nothing is known yet"
    assert groups_to_ask(8, 24, 32, 32) == 11, "8 / 0.75"
    assert groups_to_ask(8, 0, 32, 32) == 32, "8 / 0.25"
    assert groups_to_ask(20, 12, 32, 32) == 32, "never more than a batch"


def test_adora_weight_by_lengths() -> None:
    """Incorrect responses are 4 and 6 tokens long, 5 on average."""
    assert adora_weight(group([1, 1, 0, 0], [3, 5, 4, 6]), 0.1) == 0.1
    assert adora_weight(group([1, 1, 0, 0], [3, 6, 4, 6]), 0.1) == 1.0
    assert adora_weight(group([1, 1, 0, 0, None], [3, 5, 4, 6, 90]), 0.1) == 0.1
    assert adora_weight(group([1, 1]), 0.1) == adora_weight(group([0, 0]), 0.1) == 1.0


def test_adora_excludes_truncated_incorrect_responses() -> None:
    """The response of 30 tokens was truncated. The mean of the others is 4; including it, it would be 12.7."""
    assert adora_weight(group([1, 0, 0, 0], [5, 3, 5, 30], limit=30), 0.1) == 1.0
    assert adora_weight(group([1, 0, 0, 0], [4, 3, 5, 30], limit=30), 0.1) == 0.1
    assert adora_weight(group([1, 0, 0], [30, 3, 5], limit=30), 0.1) == 1.0, "a correct response has the same length"
    assert adora_weight(group([1, 0, 0], [5, 30, 30], limit=30), 0.1) == 1.0, "nothing to compare with"


def test_as_many_updates_as_there_are_groups_for() -> None:
    """128 groups in 8 updates make 16 each; 20 groups make one update, not 8 of 2 or 3."""
    assert [update_count(groups, 128, 8) for groups in (128, 127, 112, 40, 20, 16, 15, 1, 0)] == [8, 7, 7, 2] + [
        1
    ] * 4 + [0]
    assert [update_count(groups, 7, 3) for groups in (7, 6, 5, 3, 1)] == [3, 3, 2, 1, 1]


def test_phases_of_a_schedule() -> None:
    phases = [Phase(steps=n, group_size=size, max_tokens=length) for n, size, length in ((2, 16, 4), (3, 8, 8))]
    phases.append(Phase(steps=1, group_size=4, max_tokens=16))
    assert [phase_of(phases, step).group_size for step in range(1, 9)] == [16, 16, 8, 8, 8, 4, 4, 4]


def test_prompts_appear_once_per_epoch_in_a_new_order() -> None:
    prompts = Prompts(PROBLEMS, 3)
    taken = prompts.take(7) + prompts.take(13)
    first, second = taken[:10], taken[10:]
    assert {problem.id for problem, _ in first} == {problem.id for problem, _ in second} == {p.id for p in PROBLEMS}
    assert [p.id for p, _ in first] != [p.id for p, _ in second]
    assert [epoch for _, epoch in taken] == [0] * 10 + [1] * 10
    again = Prompts(PROBLEMS, 3)
    again.position = 13
    assert again.take(7) == taken[13:]
    assert [p.id for p, _ in Prompts(PROBLEMS, 4).take(10)] != [p.id for p, _ in first]


def test_groups_survive_a_checkpoint() -> None:
    rng = random.Random(0)
    scored = GradedResponse(
        Response("a <b>", (1, 2), (-rng.random(), -1e-9), "length"),
        Grading(Verdict.UNKNOWN, None, "no gold"),
        Reward(None, {"accuracy": None, "format": 1.0}),
        StepRewards((0.25,), (0, -1)),
    )
    whole = GradedGroup(PROBLEMS[4], 9, 3, (scored, *group([1, 0]).responses))
    assert from_json(json.loads(json.dumps(to_json(whole))), {p.id: p for p in PROBLEMS}) == whole


def by_problem(rates: dict[str, float]):
    """Return a grader that accepts all, none or some responses, depending on the problem."""

    def write(problem: Problem, rng: random.Random) -> str:
        return "right" if rng.random() < rates.get(problem.id, 0.5) else "wrong"

    return write


def collector(tmp_path: Path, pool: ScriptedPool, problems: Sequence[Problem] = PROBLEMS, **more: Any) -> Collector:
    config = make_config(tmp_path, **{"batch": {"prompts": 4, "group_size": 8}, **more})
    return Collector(config, problems, pool, ScriptedGrader(), Limits(12, frozenset()).check)


async def test_further_rounds_replace_filtered_groups(tmp_path: Path, capsys) -> None:
    """Half of the problems are never solved. Groups beyond a batch are used first in the next step."""
    hopeless = {problem.id: 0.0 for problem in PROBLEMS[::2]}
    pool = ScriptedPool(by_problem(hopeless))
    made = collector(tmp_path, pool, filter={"rounds": 9}, trainer=WEIGHED)
    carried: list[GradedGroup] = []
    position = 0
    for step in range(1, 6):
        found = await made.collect(step)
        assert len(found.groups) == 4
        assert found.groups[: len(carried)] == carried, "the oldest first"
        assert all(group.problem.id not in hopeless for group in found.groups)
        new = made._prompts.position - position
        passed = new - found.dropped["too_hard"] - found.dropped["too_easy"]
        position, kept = made._prompts.position, len(found.groups) - len(carried)
        carried = list(made._carried)
        assert len(carried) == passed - kept, "nothing is thrown away"
    assert len(pool.asked) == position
    assert not capsys.readouterr().err


async def test_the_rounds_have_a_cap(tmp_path: Path, capsys) -> None:
    pool = ScriptedPool(by_problem({problem.id: 1.0 for problem in PROBLEMS[1:]}))
    found = await collector(tmp_path, pool, filter={"rounds": 3}, trainer=WEIGHED).collect(7)
    assert found.rounds == 3
    assert found.groups == [], "too few for an update of four"
    assert found.dropped["too_easy"] == len(pool.asked) - found.passed
    assert "step 7: " in (warning := capsys.readouterr().err)
    assert "after filter.rounds=3 rounds" in warning


async def test_updates_are_whole_and_the_rest_waits(tmp_path: Path, capsys) -> None:
    """Each step has two updates of three groups. At most 5 of the first 12 problems pass, enough for one; 2 wait for
    the next step.
    """
    problems = [Problem(f"p{number}", "?", "right") for number in range(12)]
    first = [problem.id for problem, _ in Prompts(problems, 0).take(9)]
    rates = dict.fromkeys(first[5:], 1.0)
    batch = {"prompts": 6, "updates": 2, "group_size": 16}
    pool = ScriptedPool(by_problem(rates))
    made = collector(tmp_path, pool, problems, filter={"rounds": 2}, trainer=WEIGHED, batch=batch)
    found = await made.collect(1)
    assert (len(found.groups), found.carried, found.passed) == (3, 2, 5)
    assert "5 of 6 groups after filter.rounds=2 rounds" in (warning := capsys.readouterr().err)
    assert "1 of 2 updates of 3 groups, 2 groups wait for the next step" in warning
    waiting = list(made._carried)
    again = collector(tmp_path, pool, problems, filter={"rounds": 2}, trainer=WEIGHED, batch=batch)
    again.restore(json.loads(json.dumps(made.state())))
    found = await again.collect(2)
    assert found.groups[:2] == waiting
    assert (len(found.groups), found.carried) in {(6, 1), (3, 1), (3, 2), (6, 0)}


async def test_too_few_groups_for_an_update_all_wait(tmp_path: Path) -> None:
    pool = ScriptedPool(by_problem({problem.id: 1.0 for problem in PROBLEMS[1:]}))
    batch = {"prompts": 4, "updates": 1, "group_size": 16}
    made = collector(tmp_path, pool, filter={"rounds": 1}, trainer=WEIGHED, batch=batch)
    seen = [await made.collect(step) for step in range(1, 6)]
    assert [len(found.groups) for found in seen] == [0] * 5
    assert sum(found.passed for found in seen) == seen[-1].carried == 2, "one in each pass over ten problems"


async def test_a_prm_scores_no_group_that_the_filter_drops(tmp_path: Path) -> None:
    scored: list[str] = []

    class Process:
        async def score(self, problem: Problem, responses: Sequence[Response]) -> list[None]:
            scored.append(problem.id)
            return [None] * len(responses)

    pool = ScriptedPool(by_problem({problem.id: float(position % 2) for position, problem in enumerate(PROBLEMS[2:])}))
    config = make_config(tmp_path, batch={"prompts": 1, "group_size": 16}, filter={"rounds": 10}, trainer=WEIGHED)
    made = Collector(config, PROBLEMS, pool, ScriptedGrader(), Limits(12, frozenset()).check, Process())
    found = await made.collect(1)
    assert found.dropped["too_hard"] + found.dropped["too_easy"] == len(pool.asked) - 1 > 0
    assert scored == [found.groups[0].problem.id]


async def test_order_does_not_depend_on_which_group_ends_first(tmp_path: Path) -> None:
    async def ids(seed: int) -> list[str]:
        random.seed(seed)  # the pool's delays
        made = collector(tmp_path, ScriptedPool(), filter={"low": 0.2, "high": 0.4}, trainer=WEIGHED)
        steps = [await made.collect(step) for step in (1, 2)]
        return [group.problem.id for found in steps for group in found.groups]

    assert await ids(0) == await ids(1) == await ids(2)


async def test_excluded_samples_are_counted_by_reason(tmp_path: Path) -> None:
    """p0 has no verdicts, one problem is rejected, and some samples of p2 are unknown."""
    problems = [PROBLEMS[0], PROBLEMS[1], PROBLEMS[2], Problem("refused", "", "right")]
    texts = {"p0": ["what"], "p1": ["right", "wrong"], "p2": ["right", "what", "wrong"]}
    pool = ScriptedPool(lambda problem, rng: rng.choice(texts[problem.id]))
    found = await collector(tmp_path, pool, problems).collect(1)
    assert {group.problem.id for group in found.groups} == {"p1", "p2"}
    unknown = sum(each.grading.verdict is Verdict.UNKNOWN for group in found.groups for each in group.responses)
    assert found.dropped == Counter(refused=1, few_known=1, unknown=8 + unknown)
    assert unknown > 0
    assert found.refusal == "problem refused: longer than the maximum context length"
    mixed = next(group for group in found.groups if group.problem.id == "p2")
    assert mixed.known == 8 - unknown == len(mixed.accuracies)


async def test_aborted_responses_are_dropped(tmp_path: Path) -> None:
    pool = ScriptedPool()
    pool.finish_reason = "abort"
    found = await collector(tmp_path, pool).collect(1)
    assert (found.groups, found.dropped) == ([], Counter(aborted=32, few_known=4))


async def test_responses_beyond_the_context_are_dropped(tmp_path: Path) -> None:
    """With a prompt of 7 tokens and a context of 10, responses of 4 and 5 tokens do not fit."""
    config = make_config(tmp_path, batch={"prompts": 4, "group_size": 8})
    check = Limits(10, frozenset()).check
    found = await Collector(config, PROBLEMS, ScriptedPool(), ScriptedGrader(), check).collect(1)
    every = [each for group in found.groups for each in group.responses]
    assert {each.reward.total is None for each in every if len(each.response.token_ids) > 3} == {True}
    assert {each.reward.total is None for each in every if len(each.response.token_ids) <= 3} == {False}
    assert len(found.groups) == 4
    assert found.dropped == Counter(untrainable=sum(each.reward.total is None for each in every))


async def test_a_schedule_sets_length_and_number(tmp_path: Path) -> None:
    pool = ScriptedPool()
    schedule = [{"steps": 1, "group_size": 6, "max_tokens": 9}, {"steps": 1, "group_size": 2, "max_tokens": 30}]
    made = collector(tmp_path, pool, schedule=schedule)
    for step in (1, 2, 3):
        await made.collect(step)
    assert [(n, most) for _, n, _, _, most in pool.asked] == [(6, 9)] * 4 + [(2, 30)] * 8


async def test_a_group_is_scored_while_others_are_generated(tmp_path: Path) -> None:
    """Only responses with a reward are scored, and each gets its own scores."""
    events: list[str] = []

    class Process:
        async def score(self, problem: Problem, responses: Sequence[Response]) -> list[StepRewards]:
            events.append(f"score {problem.id}")
            assert all(response.text != "what" for response in responses)
            return [StepRewards((response.token_ids[0] / 100,), (0,)) for response in responses]

    class Pool(ScriptedPool):
        async def sample(self, problem: Problem, *arguments: Any, **settings: Any):
            found = await super().sample(problem, *arguments, **settings)
            if problem.id == "p1":
                while "score p0" not in events:
                    await asyncio.sleep(0.001)
            events.append(f"sampled {problem.id}")
            return found

    pool = Pool(lambda problem, rng: rng.choice(("right", "wrong", "what")))
    config = make_config(tmp_path, batch={"prompts": 2, "group_size": 8})
    check = Limits(99, frozenset()).check
    found = await Collector(config, PROBLEMS[:2], pool, ScriptedGrader(), check, Process()).collect(1)
    assert events == ["sampled p0", "score p0", "sampled p1", "score p1"]
    for each in (each for group in found.groups for each in group.responses):
        assert (each.process is None) == (each.grading.verdict is Verdict.UNKNOWN)
        assert each.process is None or each.process.scores == (each.response.token_ids[0] / 100,)
