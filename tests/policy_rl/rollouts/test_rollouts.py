"""Test the pool's bookkeeping with actors that have no engine."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from mmprm.errors import ConfigError, EngineStoppedError, SamplingError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.types import Problem
from policy_rl.rollouts import pool as rollouts
from policy_rl.rollouts.config import RolloutConfig, check_sampling
from policy_rl.rollouts.pool import RolloutPool
from policy_rl.types import Group, Response
from policy_rl.weights.config import WeightsConfig
from policy_rl.weights.transfer import Published

PROBE = (-1.0, -2.0)


def published(version: int) -> Published:
    return Published(version, 1, 4, "/folder", tuple(value - version / 10 for value in PROBE))


class Script:
    """Holds the state shared by all actors of a test."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.options: list[dict] = []
        """Of each actor, by order."""
        self.further: list[dict] = []
        self.settings: list[dict] = []
        """Of each request, by order."""
        self.dies: set[int] = set()
        """Actors, by order of their start, that are dead as soon as they are asked for a rollout."""
        self.lost_from: int | None = None
        """Actors, by order, from this one on do not start: their machine is lost."""
        self.silent = False
        self.dead: set[int] = set()
        """Actors, by order of their start, whose process has ended."""
        self.delay = 0.01
        self.start_delay = self.load_delay = 0.0
        self.bad_probe = False


class Actor:
    def __init__(self, script: Script) -> None:
        self.script, self.number = script, len(script.actors)
        script.actors.append(self)
        self.in_flight = self.most = 0
        self.loaded: list[int] = []
        self.folders: list[str | None] = []
        self.during_load: list[int] = []
        self.killed = False
        for name in ("start", "sample", "load", "sleep", "wake", "check"):
            method = getattr(self, f"_{name}")
            setattr(self, name, SimpleNamespace(remote=method))

    async def _start(self, engine, sampling, prompt, further, episodes):
        self.script.further.append(further)
        if self.script.lost_from is not None and self.number >= self.script.lost_from:
            raise RayActorError
        await asyncio.sleep(self.script.start_delay)
        return (1, 2, 3), (9,)

    async def _sample(self, problem: Problem, n: int, seed: int, version: int, **settings: Any) -> Group:
        self.script.settings.append(settings)
        if problem.id == "bad":
            raise SamplingError("problem bad: too long")
        self.in_flight += n
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0 if self.number in self.script.dies else self.script.delay)
        self.in_flight -= n
        if self.number in self.script.dies:
            raise RayActorError
        answer = Response(f"{problem.id} {seed} {self.loaded}", (1,), (0.0,), "stop")
        return Group(problem, (answer,) * n, version, 5)

    async def _sleep(self) -> None:
        if self.number in self.script.dead:
            raise RayActorError

    _wake = _check = _sleep

    async def _load(self, published: Published) -> tuple[float, ...]:
        await self._sleep()
        self.during_load.append(self.in_flight)
        if self.script.silent:
            await asyncio.sleep(60)
        await asyncio.sleep(self.script.delay + self.script.load_delay)
        self.loaded.append(published.version)
        self.folders.append(published.folder)
        return PROBE if self.script.bad_probe else published.probe


@pytest.fixture
def script(monkeypatch) -> Script:
    script = Script()

    def remote(**options):
        script.options.append(options)
        return lambda _: SimpleNamespace(remote=lambda: Actor(script))

    def kill(actor: Actor) -> None:
        actor.killed = True

    monkeypatch.setattr(rollouts, "ray", SimpleNamespace(remote=remote))
    monkeypatch.setattr(rollouts.actors, "kill", kill)
    monkeypatch.setattr(rollouts, "engine_resources", lambda engine, size: ([engine] * size, {"num_cpus": 1}))
    return script


async def start(max_restarts: int = 3, **weights) -> RolloutPool:
    engine = EngineConfig(model="m", max_num_seqs=16, dtype="float32")
    config = RolloutConfig(engines=2, max_restarts=max_restarts)
    return await RolloutPool.start(engine, SamplingConfig(), PromptConfig(), config, WeightsConfig(**weights))


async def test_a_prefix_and_a_limit_reach_the_engine(script):
    pool = await start()
    prefix = Response("ab", (1, 2), (-0.5, -0.5), "stop").prefix(1)
    await pool.sample(Problem("p", "?", "1"), 2, 7, 0, max_tokens=9, prefix=prefix)
    await pool.sample(Problem("p", "?", "1"), 2, 7, 0)
    assert script.settings == [{"max_tokens": 9, "prefix": prefix}, {}]
    assert (prefix.token_ids.tolist(), prefix.logprobs.tolist()) == ([1], [-0.5])


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{number}", "?", "1") for number in range(count)]


async def ask(pool: RolloutPool, count: int, n: int = 8) -> list[Group]:
    return await asyncio.gather(*(pool.sample(problem, n, 1, pool.version) for problem in problems(count)))


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
    still = await asyncio.wait_for(ask(pool, 1), 5)
    assert still[0].responses[0].text.endswith("[]")
    await asyncio.wait_for(asyncio.gather(early, load, late), 5)


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
    await asyncio.sleep(0.1)
    assert len(script.actors) == 3, "the new engine is loading"
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
    assert len(await asyncio.wait_for(ask(pool, 4), 5)) == 4
    assert pool.restarts == 2


GPU_PLACES = [{"num_gpus": 0, "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": str(gpu)}}} for gpu in range(2)]


async def start_on_gpus(colocated: bool = False, **engine) -> RolloutPool:
    settings = EngineConfig(model="m", max_num_seqs=16, dtype="float32", **engine)
    config = RolloutConfig(colocated=colocated)
    return await RolloutPool.start(settings, SamplingConfig(), PromptConfig(), config, options=GPU_PLACES)


async def test_a_dead_engine_ends_the_run_where_weights_go_from_gpu_to_gpu(script):
    """A replacement could not get the current weights. Before the first transfer, it starts with the model's own."""
    pool = await start_on_gpus()
    script.dies = {0}
    await ask(pool, 6)
    assert pool.restarts == 1
    await pool.load_weights(replace(published(1), folder=None))
    script.dies = {1}
    with pytest.raises(EngineStoppedError, match=r"GPU to GPU.*run the same command again.*weights\.transport=file"):
        await asyncio.wait_for(ask(pool, 6), 5)
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
    assert "engine 2 of 2: The actor" in str(await asyncio.wait_for(lost, 5))


async def test_weights_in_files_do_not_need_the_engines(script, monkeypatch):
    monkeypatch.setattr(rollouts, "LOSS_CHECK_SECONDS", 0.01)
    pool = await start()
    script.dead = {0, 1}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool.until_lost(), 0.05)


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


async def test_restarts_are_bounded_and_no_request_waits_forever(script):
    pool = await start(max_restarts=2)
    script.dies = set(range(100))
    answers = await asyncio.gather(*(pool.sample(each, 8, 1, 0) for each in problems(20)), return_exceptions=True)
    assert all(isinstance(answer, EngineStoppedError) for answer in answers)
    assert "more than rollouts.max_restarts=2" in str(answers[0])
    assert len(script.actors) == 4
    with pytest.raises(EngineStoppedError, match="max_restarts"):
        await asyncio.wait_for(pool.sample(problems(1)[0], 8, 1, 0), 1)


async def test_a_lost_machine_ends_the_run_and_says_how_to_resume(script):
    pool = await start()
    script.dies, script.lost_from = {0}, 2
    with pytest.raises(
        EngineStoppedError, match=r"no other engine starts in its place .*engine 1 of 2 to start m"
    ) as seen:
        await asyncio.wait_for(ask(pool, 4), 5)
    assert "run the same command again to resume from the last checkpoint" in str(seen.value)
    assert script.actors[2].killed


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
        await asyncio.wait_for(pool.sample(problems(1)[0], 8, 1, 3), 1)


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
    assert len(await asyncio.wait_for(ask(pool, 4), 5)) == 4
    await asyncio.wait_for(pool.load_weights(published(1)), 5)


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
