"""Test the arguments that custom reward functions can receive besides problem, response and grading."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_rl import ScriptedGrader, ScriptedPool, make_config

from mmprm.config import build
from mmprm.problems import load_problems
from mmprm.types import Grading, Problem, Verdict
from policy_rl.collector import Collector, problems_fingerprint
from policy_rl.config import RLConfig
from policy_rl.rewards.outcome import OutcomeReward, RewardConfig
from policy_rl.trainer.batch import Limits
from policy_rl.types import Response

MODULE = """
FACTS = "finish_reason,token_count,token_ids"
def level(problem, response, grading): return float(problem.extra["level"])
def ended(problem, response, grading, finish_reason): return float(finish_reason == "stop")
def short(problem, response, grading, *, token_count=0): return -float(token_count)
def last(problem, response, grading, token_ids): return float(token_ids[-1])
def everything(problem, response, grading, **facts): return float(",".join(sorted(facts)) == FACTS)
class Bonus:
    def __call__(self, problem, response, grading, finish_reason="?"): return {"stop": 1, "length": 2}[finish_reason]
bonus = Bonus()
"""
GRADING = Grading(Verdict.CORRECT, "3", "")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "told_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "told_rewards", raising=False)
    return "told_rewards"


@pytest.mark.parametrize(
    ("name", "finish_reason", "expected"),
    [
        ("ended", "stop", 1.0),
        ("ended", "length", 0.0),
        ("short", "stop", -7.0),
        ("last", "stop", 11.0),
        ("everything", "stop", 1.0),
        ("bonus", "length", 2.0),
    ],
)
def test_functions_can_request_finish_reason_and_tokens(
    path: str, name: str, finish_reason: str, expected: float
) -> None:
    config = build(RewardConfig, {"accuracy_weight": 0, "functions": [{"path": f"{path}:{name}"}]})
    response = Response("text", [5, 6, 7, 8, 9, 10, 11], [-1.0] * 7, finish_reason)
    reward = OutcomeReward(config)(Problem("p", "?", "3"), response, GRADING)
    assert reward.total == expected


async def test_the_columns_of_a_row_reach_a_function(path: str, tmp_path: Path) -> None:
    """The columns go from the problem file to the reward of a group."""
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "right", "level": 5, "source": {"split": "a"}}\n')
    config = make_config(
        tmp_path,
        problems={"path": str(tmp_path / "rows.jsonl")},
        rewards={"accuracy_weight": 0, "functions": [{"path": f"{path}:level"}, {"path": f"{path}:bonus"}]},
        batch={"prompts": 1, "group_size": 2},
    )
    problems = load_problems(config.problems)
    assert problems[0].extra["source"] == {"split": "a"}
    pool = ScriptedPool()
    pool.finish_reason = "length"
    collector = Collector(config, problems, pool, ScriptedGrader(), Limits(99, frozenset()).check)
    (group,) = (await collector.collect(1)).groups
    assert [each.reward.total for each in group.responses] == [5.0 + 2.0] * 2


async def test_masked_truncated_responses_are_counted_and_kept_for_the_baselines(tmp_path: Path) -> None:
    config = make_config(tmp_path, rewards={"truncated": "mask"}, batch={"prompts": 1, "group_size": 2})
    pool = ScriptedPool(lambda problem, rng: "right")
    pool.finish_reason = "length"
    problems = [Problem("p", "?", "right")]
    collected = await Collector(config, problems, pool, ScriptedGrader(), Limits(99, frozenset()).check).collect(1)
    assert collected.dropped == {"truncated": 2}
    assert [each.reward.total for each in collected.groups[0].responses] == [1.0, 1.0]


def test_other_columns_change_the_run_if_a_reward_may_use_them(tmp_path: Path) -> None:
    plain = make_config(tmp_path)
    told = make_config(tmp_path, rewards={"functions": [{"path": "told_rewards:level"}]})

    def found(config: RLConfig, **extra: Any) -> str:
        return problems_fingerprint([Problem("p", "?", "3", extra=extra)], config)

    assert found(plain, level=5) == found(plain, level=6) == found(plain)
    assert found(told, level=5) != found(told, level=6)
    assert found(told, a=1, b=[2]) == found(told, b=[2], a=1)
