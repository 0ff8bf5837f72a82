"""Test the evaluation of the policy on held-out problems."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scripted_rl import (
    PROBLEMS,
    ScriptedGrader,
    ScriptedPool,
    make_config,
    make_loop,
    metrics_of,
)

from mmprm.errors import TrainingError
from mmprm.types import Problem
from policy_rl.rollouts.evaluate import evaluate
from policy_rl.types import Group


def test_evaluation_before_between_and_after(tmp_path: Path) -> None:
    held_out = [Problem("h1", "?", "right"), Problem("h2", "?", "right"), Problem("refused", "?", "right")]
    config = make_config(tmp_path / "run", eval_every=4)
    pool = ScriptedPool(lambda problem, rng: "right" if problem.id == "h1" else rng.choice(("right", "wrong")))
    summary = asyncio.run(make_loop(config, pool, held_out=held_out).run())
    assert [line["step"] for line in metrics_of(tmp_path / "run", "eval")] == [0, 4, 6]
    assert summary.before is not None
    assert summary.before.failed == 1
    seeds = {seed for problem, _, seed, _, _ in pool.asked if problem == "h2"}
    assert len(seeds) == 1, "the same samples each time"


async def test_pass_at_1_by_hand() -> None:
    """h1 has two correct responses; h2 has one unknown, so only its known verdict counts."""
    texts = iter(["right", "wrong", "what", "wrong"])
    pool = ScriptedPool(lambda problem, rng: next(texts))
    pool.sample = _in_turn(pool)
    found = await evaluate(pool, ScriptedGrader(), PROBLEMS[:2], 2, 0)
    assert found.pass_at_1.value == pytest.approx((0.5 + 0.0) / 2)
    assert (found.problems, found.failed, found.unknown) == (2, 0, 1)
    aborting = ScriptedPool(lambda problem, rng: "wrong" if problem is PROBLEMS[1] else "right")
    aborting.finish_reason = "abort"
    with pytest.raises(TrainingError, match="no held-out problem has a known verdict"):
        await evaluate(aborting, ScriptedGrader(), PROBLEMS[:2], 2, 0)
    other = [Problem("label", "?", "what")]
    labels = await evaluate(ScriptedPool(lambda *_: "what"), ScriptedGrader(), other, 2, 0, accuracy="exact_label")
    assert (labels.pass_at_1.value, labels.unknown) == (1.0, 0)
    nothing = ScriptedPool(lambda problem, rng: "what")
    with pytest.raises(TrainingError, match="no held-out problem has a known verdict"):
        await evaluate(nothing, ScriptedGrader(), PROBLEMS[:2], 2, 0)


async def test_an_evaluation_that_fails_asks_for_nothing_further() -> None:
    """Further requests would reach the engines while they sleep or load new weights."""
    pool, waiting = ScriptedPool(lambda *_: "right"), asyncio.Event()
    sample, canceled = pool.sample, []

    async def first_alone(problem: Problem, *arguments: Any) -> Group:
        if problem is PROBLEMS[0]:
            return await sample(problem, *arguments)
        try:
            await waiting.wait()
        except asyncio.CancelledError:
            canceled.append(problem)
            raise

    class Broken(ScriptedGrader):
        async def grade(self, problem: Problem, text: str) -> Any:
            raise ConnectionError("judge")

    pool.sample = first_alone
    with pytest.raises(ConnectionError):
        await evaluate(pool, Broken(), PROBLEMS[:3], 1, 0)
    assert canceled == PROBLEMS[1:3]


def _in_turn(pool: ScriptedPool):
    sample, lock = pool.sample, asyncio.Lock()

    async def one_by_one(*arguments: Any, **settings: Any) -> Group:
        async with lock:
            return await sample(*arguments, **settings)

    return one_by_one
