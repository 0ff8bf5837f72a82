"""Online filter, carry-over, order of problems, ADORA weight, schedule."""

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
from policy_rl.batch import Limits
from policy_rl.collecting import Collector
from policy_rl.filtering import FilterConfig, Phase, Prompts, adora_weight, groups_to_ask, phase_of
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards, from_json, to_json
from policy_rl.rewards import Reward
from policy_rl.types import Response

WEIGHED = {"loss": {"importance_cap": 2.0}}


def group(accuracies: Sequence[float | None], lengths: Sequence[int] | None = None) -> GradedGroup:
    """None: no verdict, so no reward."""
    lengths = lengths or [3] * len(accuracies)
    responses = tuple(
        GradedResponse(
            Response("text", tuple(range(length)), (0.0,) * length, "stop"),
            Grading(Verdict.UNKNOWN if each is None else Verdict(int(each)), None, ""),
            Reward(each, {"accuracy": each}),
        )
        for each, length in zip(accuracies, lengths, strict=True)
    )
    return GradedGroup(PROBLEMS[0], 5, 0, responses)


def test_groups_of_middling_accuracy_are_kept() -> None:
    """Among known verdicts: one right of ten is 0.1, the lower end, and kept."""
    config = FilterConfig()
    assert config.verdict(group([1] + [0] * 9)) is None
    assert config.verdict(group([1] + [0] * 10)) == "too_hard"
    assert config.verdict(group([1] * 9 + [0])) is None
    assert config.verdict(group([1] * 8)) == "too_easy"
    assert config.verdict(group([1, 1, None, None])) == "too_easy", "unknown is not wrong"
    assert config.verdict(group([1, 0, None])) is None


def test_how_many_groups_a_round_asks_for() -> None:
    assert groups_to_ask(32, 0, 0, 32) == 32, "nothing is known yet"
    assert groups_to_ask(8, 24, 32, 32) == 11, "8 / 0.75"
    assert groups_to_ask(8, 0, 32, 32) == 32, "8 / 0.25"
    assert groups_to_ask(20, 12, 32, 32) == 32, "never more than a batch"


def test_adora_weight_by_lengths() -> None:
    """Wrong ones are 4 and 6 long: 5 on average."""
    assert adora_weight(group([1, 1, 0, 0], [3, 5, 4, 6]), 0.1) == 0.1
    assert adora_weight(group([1, 1, 0, 0], [3, 6, 4, 6]), 0.1) == 1.0
    assert adora_weight(group([1, 1, 0, 0, None], [3, 5, 4, 6, 90]), 0.1) == 0.1
    assert adora_weight(group([1, 1]), 0.1) == adora_weight(group([0, 0]), 0.1) == 1.0


def test_phases_of_a_schedule() -> None:
    phases = [Phase(steps=n, group_size=size, max_tokens=length) for n, size, length in ((2, 16, 4), (3, 8, 8))]
    phases.append(Phase(steps=1, group_size=4, max_tokens=16))
    assert [phase_of(phases, step).group_size for step in range(1, 9)] == [16, 16, 8, 8, 8, 4, 4, 4]


def test_prompts_come_once_an_epoch_in_another_order() -> None:
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
    """Problems that are always, never or sometimes solved."""

    def write(problem: Problem, draw: random.Random) -> str:
        return "right" if draw.random() < rates.get(problem.id, 0.5) else "wrong"

    return write


def collector(tmp_path: Path, pool: ScriptedPool, problems: Sequence[Problem] = PROBLEMS, **more: Any) -> Collector:
    config = make_config(tmp_path, **{"batch": {"prompts": 4, "group_size": 8}, **more})
    return Collector(config, problems, pool, ScriptedGrader(), Limits(12, frozenset()).check)


async def test_further_rounds_replace_what_the_filter_takes(tmp_path: Path, capsys) -> None:
    """Half of the problems are hopeless. What is more than a batch comes first in the next step."""
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
    assert len(found.groups) < 4
    assert found.dropped["too_easy"] == len(pool.asked) - len(found.groups)
    assert "step 7: " in (warning := capsys.readouterr().err)
    assert "after filter.rounds=3 rounds" in warning


async def test_order_does_not_depend_on_who_ends_first(tmp_path: Path) -> None:
    async def ids(seed: int) -> list[str]:
        random.seed(seed)  # the pool's delays
        made = collector(tmp_path, ScriptedPool(), filter={"low": 0.2, "high": 0.4}, trainer=WEIGHED)
        steps = [await made.collect(step) for step in (1, 2)]
        return [group.problem.id for found in steps for group in found.groups]

    assert await ids(0) == await ids(1) == await ids(2)


async def test_what_takes_no_part_is_counted_by_reason(tmp_path: Path) -> None:
    """p0 has no verdicts, one problem is refused, some samples of p2 are unknown."""
    problems = [PROBLEMS[0], PROBLEMS[1], PROBLEMS[2], Problem("refused", "", "right")]
    texts = {"p0": ["what"], "p1": ["right", "wrong"], "p2": ["right", "what", "wrong"]}
    pool = ScriptedPool(lambda problem, draw: draw.choice(texts[problem.id]))
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
    """A prompt of 7 tokens and responses of 2 to 5: with a context of 10 those of 4 and 5 do not fit."""
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
    """Only responses with a reward are scored, and the scores come to their own response."""
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

    pool = Pool(lambda problem, draw: draw.choice(("right", "wrong", "what")))
    config = make_config(tmp_path, batch={"prompts": 2, "group_size": 8})
    check = Limits(99, frozenset()).check
    found = await Collector(config, PROBLEMS[:2], pool, ScriptedGrader(), check, Process()).collect(1)
    assert events == ["sampled p0", "score p0", "sampled p1", "score p1"]
    for each in (each for group in found.groups for each in group.responses):
        assert (each.process is None) == (each.grading.verdict is Verdict.UNKNOWN)
        assert each.process is None or each.process.scores == (each.response.token_ids[0] / 100,)
