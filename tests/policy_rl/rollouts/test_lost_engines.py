"""Test that engines that die are noticed and replaced, or end the run, with actors that have no engine."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest
from scripted_engines import ask, problems, published, start, start_on_gpus

from mmprm.errors import EngineStoppedError
from policy_rl.rollouts import pool as rollouts


async def test_a_dead_engine_is_replaced_and_its_groups_are_asked_again(script):
    pool = await start()
    await pool.load_weights(published(1))
    script.dies = {0}
    groups = await ask(pool, 6)
    assert [group.problem for group in groups] == problems(6)
    assert all(response.text.endswith("[1]") for group in groups for response in group.responses)
    assert [actor.killed for actor in script.actors] == [True, False, False]
    assert script.actors[2].loaded == [1], "the new engine got the current weights"
    assert pool.restarts == 1
    script.dies = set()
    await pool.load_weights(published(2))
    assert [actor.loaded for actor in script.actors[1:]] == [[1, 2], [1, 2]]


async def test_a_new_engine_takes_requests_only_once_it_has_the_current_weights(script):
    pool = await start()
    await pool.load_weights(published(1))
    script.dies, script.load_delay = {0}, 0.2
    early = asyncio.create_task(ask(pool, 2))
    while len(script.actors) < 3:  # until the new engine is loading
        await asyncio.sleep(0.001)
    groups = await ask(pool, 4) + await early
    assert {response.text[-3:] for group in groups for response in group.responses} == {"[1]"}


async def test_a_request_canceled_while_it_replaces_an_engine_leaves_that_to_the_next(script):
    pool = await start(max_restarts=2)
    script.dies, script.start_delay = {0, 1}, 0.5
    tasks = [asyncio.create_task(pool.sample(problem, 16, 1, 0)) for problem in problems(2)]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    script.start_delay = 0
    assert len(await asyncio.wait_for(ask(pool, 4), 60)) == 4
    assert pool.restarts == 2


async def test_a_dead_engine_ends_the_run_where_weights_go_from_gpu_to_gpu(script):
    """A replacement could not get the current weights. Before the first transfer, it starts with the model's own."""
    pool = await start_on_gpus()
    script.dies = {0}
    await ask(pool, 6)
    assert pool.restarts == 1
    await pool.load_weights(replace(published(1), folder=None))
    script.dies = {1}
    with pytest.raises(EngineStoppedError, match=r"GPU to GPU.*run the same command again.*weights\.transport=file"):
        await asyncio.wait_for(ask(pool, 6), 60)
    assert len(script.actors) == 3


async def test_an_engine_that_died_asleep_is_replaced_when_it_gets_the_new_weights(script, capsys):
    pool = await start()
    await pool.load_weights(published(1))
    script.dead = {1}
    await pool.sleep()
    await pool.wake()
    notice = "engine 2 of 2 to fall asleep: The actor .* another engine starts in its place when the next weights are"
    assert len(re.findall(notice, capsys.readouterr().err.replace("\n", " "))) == 1
    assert script.actors[1].killed
    assert len(script.actors) == 2, "the trainer has the memory"
    await pool.load_weights(published(2))
    assert (script.actors[2].loaded, pool.restarts, len(await ask(pool, 4, 2))) == ([2], 1, 4)


@pytest.mark.parametrize("call", ["sleep", "wake"])
async def test_a_sleeping_engine_that_dies_ends_a_run_whose_weights_go_from_gpu_to_gpu(script, call):
    pool = await start_on_gpus(colocated=True)
    script.dead = {0}
    with pytest.raises(EngineStoppedError, match=r"engine 1 of 2 to .*GPU to GPU.*again to resume.*transport=file"):
        await getattr(pool, call)()


async def test_a_dead_engine_is_noticed_while_weights_are_sent_to_it(script, monkeypatch):
    monkeypatch.setattr(rollouts, "LOSS_CHECK_SECONDS", 0.01)
    pool = await start_on_gpus()
    lost = asyncio.create_task(pool.until_lost())
    await asyncio.sleep(0.03)
    assert not lost.done()
    script.dead = {1}
    assert "engine 2 of 2: The actor" in str(await asyncio.wait_for(lost, 60))


async def test_weights_in_files_do_not_need_the_engines(script, monkeypatch):
    monkeypatch.setattr(rollouts, "LOSS_CHECK_SECONDS", 0.01)
    pool = await start()
    script.dead = {0, 1}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool.until_lost(), 0.05)


async def test_restarts_are_bounded_and_no_request_waits_forever(script):
    pool = await start(max_restarts=2)
    script.dies = set(range(100))
    answers = await asyncio.gather(*(pool.sample(each, 8, 1, 0) for each in problems(20)), return_exceptions=True)
    assert all(isinstance(answer, EngineStoppedError) for answer in answers)
    assert "more than rollouts.max_restarts=2" in str(answers[0])
    assert len(script.actors) == 4
    with pytest.raises(EngineStoppedError, match="max_restarts"):
        await asyncio.wait_for(pool.sample(problems(1)[0], 8, 1, 0), 60)


async def test_a_lost_machine_ends_the_run_and_says_how_to_resume(script):
    pool = await start()
    script.dies, script.lost_from = {0}, 2
    with pytest.raises(
        EngineStoppedError, match=r"no other engine starts in its place .*engine 1 of 2 to start m"
    ) as seen:
        await asyncio.wait_for(ask(pool, 4), 60)
    assert "run the same command again to resume from the last checkpoint" in str(seen.value)
    assert script.actors[2].killed


async def test_an_engine_that_a_request_found_dead_is_noticed_while_weights_are_sent(script):
    pool = await start_on_gpus()
    await pool.load_weights(replace(published(1), folder=None))
    script.dies = {1}
    with pytest.raises(EngineStoppedError, match="GPU to GPU"):
        await asyncio.wait_for(ask(pool, 6), 60)
    assert "engine 2 of 2" in str(await asyncio.wait_for(pool.until_lost(), 60))
