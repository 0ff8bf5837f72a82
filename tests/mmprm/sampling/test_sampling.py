import asyncio
import os
import random
from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError

from mmprm.config import load
from mmprm.errors import ConfigError, EngineStoppedError, SamplingError, SetupError
from mmprm.prompts import PromptConfig
from mmprm.sampling import pool
from mmprm.sampling.config import EngineConfig, SamplingConfig, on_one_core
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.sampling.seeds import derive_seed
from mmprm.sampling.turn import TurnBeginning
from mmprm.sampling.vllm_sampler import VllmSampler
from mmprm.types import Problem, SampleRequest

PROBLEM = Problem("p", "What is 1 + 1?", "2")


def write(problem: Problem, prefix: str, rng: random.Random) -> str:
    return f"{prefix}{rng.randrange(1000)} of {problem.id}"


def test_seeds_stay_as_they_are():
    # Stored runs resume with these seeds, so the numbers must never change.
    assert derive_seed(0, "p", "", 0) == 655369940088721826
    assert derive_seed(1, "p", "<step>a</step>", 16) == 1223618775233068080


@pytest.mark.parametrize("other", [(1, "p", "x", 0), (0, "q", "x", 0), (0, "p", "y", 0), (0, "p", "x", 16)])
def test_every_part_of_a_request_decides_its_seed(other):
    assert derive_seed(*other) != derive_seed(0, "p", "x", 0)


def test_seeds_leave_a_range_for_sample_numbers():
    seeds = [derive_seed(0, "p", "x", number) for number in range(200)]
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert max(seeds) > 2**61


async def test_a_scripted_sample_depends_only_on_seed_plus_number():
    sampler = ScriptedSampler(write)
    whole = await sampler.sample(SampleRequest(PROBLEM, "a", 4, 100))
    tail = await sampler.sample(SampleRequest(PROBLEM, "a", 2, 102))
    assert [completion.text for completion in whole[2:]] == [completion.text for completion in tail]
    assert len({completion.text for completion in whole}) == 4
    assert whole[0].token_count == 3


async def test_scripted_sampler_counts_requests_in_flight():
    sampler = ScriptedSampler(write, delay=0.01)
    await asyncio.gather(*(sampler.sample(SampleRequest(PROBLEM, str(i), 1, i)) for i in range(5)))
    assert (sampler.in_flight, sampler.in_flight_max, len(sampler.requests)) == (0, 5, 5)


def test_engines_are_dealt_out_to_the_allowed_cores():
    allowed = sorted(os.sched_getaffinity(0))
    engine = EngineConfig(model="owner/name")
    assert [on_one_core(engine, i).cores for i in range(len(allowed) + 1)] == [(c,) for c in (*allowed, allowed[0])]


@pytest.mark.parametrize("setting", ["temperature=-1", "top_p=0", "max_tokens=0", "beam=4"])
def test_impossible_sampling_is_refused(setting):
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        load(SamplingConfig, sets=[setting])


def test_an_invalid_model_folder_is_rejected_at_once(tmp_path):
    with pytest.raises(SamplingError, match=r"config\.json"):
        VllmSampler(EngineConfig(model=str(tmp_path)))
    with pytest.raises(SamplingError, match="does not exist"):
        VllmSampler(EngineConfig(model=str(tmp_path / "runs" / "policy")))


async def test_an_aborted_sample_is_not_an_incorrect_answer(monkeypatch):
    """vLLM aborts a request whose image was evicted from its cache."""

    async def generate(self, request):
        return SimpleNamespace(outputs=[SimpleNamespace(text="", token_ids=[], finish_reason="error")])

    monkeypatch.setattr(VllmSampler, "generate", generate)
    sampler = object.__new__(VllmSampler)
    sampler._turn = TurnBeginning("", PromptConfig())
    with pytest.raises(SamplingError, match="problem p: the engine aborted a sample"):
        await sampler.sample(SampleRequest(PROBLEM, "", 1, 0))


async def test_an_engine_of_the_pool_that_is_killed_for_memory_has_stopped():
    async def killed(request):
        raise OutOfMemoryError("the node was low on memory")

    engines = object.__new__(pool.SamplerPool)
    engines._actors = [SimpleNamespace(sample=SimpleNamespace(remote=killed))]
    with pytest.raises(EngineStoppedError, match="low on memory"):
        await engines.sample(SampleRequest(PROBLEM, "", 1, 0))


@pytest.fixture
def gpus_of_machines(monkeypatch):
    """Return two machines with three GPUs each, one with only CPUs, and a lost one."""
    resources = [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0}]
    nodes = [{"Alive": True, "Resources": each} for each in resources] + [{"Alive": False, "Resources": {}}]
    monkeypatch.setattr(pool, "ray", SimpleNamespace(nodes=lambda: nodes))
    monkeypatch.setattr(pool.actors, "connect", lambda: False)


def test_an_engine_of_more_gpus_than_a_machine_has_is_refused(gpus_of_machines):
    with pytest.raises(
        SetupError, match=r"tensor_parallel_size=4 must be at most 3, the number of GPUs of one machine"
    ):
        pool.engine_resources(EngineConfig(model="owner/name", tensor_parallel_size=4), None)


def test_engines_on_cpus_select_their_core_where_they_start(monkeypatch):
    """The driver's machine may have other cores than the engine's."""
    nodes = [{"Alive": True, "Resources": {"CPU": 3.0}}]
    monkeypatch.setattr(pool, "ray", SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: {"CPU": 3.0}))
    monkeypatch.setattr(pool.actors, "connect", lambda: False)
    engines, resources = pool.engine_resources(EngineConfig(model="owner/name"), None)
    assert ([engine.cores for engine in engines], resources) == (["one"] * 3, {"num_cpus": 1})
    engines, _ = pool.engine_resources(EngineConfig(model="owner/name", cores=(5, 6)), 1)
    assert engines[0].cores == (5, 6)


@pytest.mark.parametrize(("width", "count"), [(1, 6), (2, 2), (3, 2)])
def test_engines_fill_each_machine(gpus_of_machines, width, count):
    engines, resources = pool.engine_resources(EngineConfig(model="owner/name", tensor_parallel_size=width), None)
    assert (len(engines), resources) == (count, {"num_gpus": width})
