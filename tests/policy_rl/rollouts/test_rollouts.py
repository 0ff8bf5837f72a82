"""Test how the pool assigns requests to engines and changes their weights, with actors that have no engine."""

from __future__ import annotations

import asyncio

import pytest
from scripted_engines import GPU_PLACES, ask, problems, published, start, start_on_gpus

from mmprm.errors import ConfigError, EngineStoppedError, SamplingError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.types import Problem
from policy_rl.rollouts.config import check_sampling
from policy_rl.rollouts.pool import RolloutPool
from policy_rl.types import Response


async def test_a_prefix_and_a_limit_reach_the_engine(script):
    pool = await start()
    prefix = Response("ab", (1, 2), (-0.5, -0.5), "stop").prefix(1)
    await pool.sample(Problem("p", "?", "1"), 2, 7, 0, max_tokens=9, prefix=prefix)
    await pool.sample(Problem("p", "?", "1"), 2, 7, 0)
    assert script.settings == [{"max_tokens": 9, "prefix": prefix}, {}]
    assert (prefix.token_ids.tolist(), prefix.logprobs.tolist()) == ([1], [-0.5])


async def test_groups_fill_both_engines_and_wait_outside_for_capacity(script):
    groups = await ask(await start(), 10)
    assert [group.problem for group in groups] == problems(10)
    assert [actor.most for actor in script.actors] == [16, 16]


async def test_a_group_larger_than_an_engine_runs_alone(script):
    groups = await ask(await start(), 3, n=20)
    assert len(groups) == 3
    assert {actor.most for actor in script.actors} == {20}


async def change_amid_rollouts(pool: RolloutPool) -> tuple[asyncio.Task, asyncio.Task, asyncio.Task]:
    """Request rollouts with the current weights, then load new weights, then request rollouts with these."""
    work = (ask(pool, 4), pool.load_weights(published(1)), pool.sample(problems(1)[0], 8, 1, 1))
    tasks = []
    for each in work:
        tasks.append(asyncio.create_task(each))
        await asyncio.sleep(0)
    return tuple(tasks)


async def test_weights_change_when_nothing_is_in_flight_and_later_groups_wait(script):
    pool = await start()
    early, load, late = await change_amid_rollouts(pool)
    assert await load == 0.0
    assert {response.text[-2:] for group in await early for response in group.responses} == {"[]"}
    assert (await late).responses[0].text.endswith("[1]")
    assert [actor.during_load for actor in script.actors] == [[0], [0]]
    assert pool.version == 1


async def test_requests_for_new_weights_do_not_block_those_for_current_ones(script):
    pool = await start()
    early, load, late = await change_amid_rollouts(pool)
    still = await asyncio.wait_for(ask(pool, 1), 60)
    assert still[0].responses[0].text.endswith("[]")
    await asyncio.wait_for(asyncio.gather(early, load, late), 60)


async def test_earlier_requests_get_the_old_weights_even_if_an_engine_dies(script):
    pool = await start()
    early = asyncio.create_task(ask(pool, 12))
    await asyncio.sleep(0)
    script.dies = {0}
    load = asyncio.create_task(pool.load_weights(published(1)))
    await asyncio.sleep(0)
    late = asyncio.create_task(pool.sample(problems(1)[0], 8, 1, 1))
    groups = await early
    assert [group.problem for group in groups] == problems(12)
    assert {response.text[-2:] for group in groups for response in group.responses} == {"[]"}
    await load
    assert (await late).responses[0].text.endswith("[1]")
    assert pool.restarts == 1


async def test_another_version_is_a_caller_error(script):
    pool = await start()
    with pytest.raises(AssertionError, match="version 2 was requested"):
        await pool.sample(problems(1)[0], 8, 1, 2)


async def test_engines_get_their_gpus_and_a_transport_that_reaches_them(script):
    pool = await start_on_gpus(colocated=True, tensor_parallel_size=2)
    assert [{key: each[key] for key in GPU_PLACES[0]} for each in script.options] == GPU_PLACES
    assert (
        script.further
        == [
            {
                "enable_sleep_mode": True,
                "weight_transfer_config": {"backend": "ipc"},
            }
        ]
        * 2
    )
    script.further.clear()
    pool.close()
    await start_on_gpus()
    assert script.further == [{"weight_transfer_config": {"backend": "nccl"}}] * 2


async def test_a_problem_that_cannot_be_asked_costs_no_engine(script):
    pool = await start()
    with pytest.raises(SamplingError, match="problem bad"):
        await pool.sample(Problem("bad", "?", "1"), 8, 1, 0)
    assert pool.restarts == 0
    assert len(await ask(pool, 4)) == 4


async def test_an_engine_that_does_not_load_in_time_is_named(script):
    pool = await start(timeout_seconds=0.05)
    script.silent = True
    with pytest.raises(
        TrainingError, match=r"timed out after 0.05 s waiting for engine 1 of 2 to load the weights of version 3"
    ):
        await pool.load_weights(published(3))
    with pytest.raises(EngineStoppedError, match="timed out"):
        await asyncio.wait_for(pool.sample(problems(1)[0], 8, 1, 3), 20)


async def test_an_engine_that_keeps_its_old_weights_is_found(script):
    pool = await start()
    script.bad_probe = True
    with pytest.raises(TrainingError, match=r"engine 1 of 2 does not compute with the weights of version 3"):
        await pool.load_weights(published(3))


async def test_a_canceled_request_releases_its_capacity(script):
    pool = await start()
    script.delay = 0.05
    tasks = [asyncio.create_task(pool.sample(problem, 16, 1, 0)) for problem in problems(4)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(await asyncio.wait_for(ask(pool, 4), 60)) == 4
    await asyncio.wait_for(pool.load_weights(published(1)), 60)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0.9}, r"sampling.top_p=0.9 must be 1 in RL"),
        ({"top_k": 50}, r"sampling.top_k=50 must be 0 in RL"),
        ({"repetition_penalty": 1.1}, r"sampling.repetition_penalty=1.1 must be 1 in RL"),
        ({"temperature": 0.0}, r"sampling.temperature=0 must be above 0"),
    ],
)
async def test_what_the_trainer_cannot_compute_is_refused(script, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_sampling(SamplingConfig(**settings))
    with pytest.raises(ConfigError, match=message):
        await RolloutPool.start(EngineConfig(model="m"), SamplingConfig(**settings), PromptConfig())
    assert script.actors == []
    check_sampling(SamplingConfig(temperature=0.7))
