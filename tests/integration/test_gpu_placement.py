"""Test which GPUs the processes of a run see, using Ray with simulated GPUs. No model is loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from mcts.config import CampaignConfig
from mcts.ray_worker import EngineActor, RayWorkers
from mmprm.config import build
from mmprm.errors import SamplingError
from policy_rl.config import RLConfig
from policy_rl.placement import reserved

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def eight_gpus() -> Iterator[None]:
    """Start Ray with eight simulated GPUs and very few CPUs, because the processes reserve no CPUs."""
    ray.shutdown()
    ray.init(address="local", num_gpus=8, num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def config(folder: Path, **values: Any) -> RLConfig:
    base = {"output": str(folder), "problems": {"path": "x.jsonl"}}
    return build(RLConfig, base | values)


def seen(options: list[dict[str, Any]]) -> list[str]:
    class Seeing:  # defined here so that Ray pickles it by value: its processes cannot import this file
        def gpus(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    actors = [ray.remote(**assign_gpus)(Seeing).remote() for assign_gpus in options]
    return ray.get([actor.gpus.remote() for actor in actors], timeout=120)


def until_free(gpus: int) -> None:
    """Wait until this many GPUs are free, because Ray reports them with a delay."""
    until = time.monotonic() + 60
    while (free := ray.available_resources().get("GPU", 0)) != gpus:
        assert time.monotonic() < until, f"{free:g} GPUs are free, not {gpus}"
        time.sleep(0.2)


async def test_tensor_parallel_engines_share_the_gpus_of_ranks(tmp_path: Path) -> None:
    wide = {"model": "m", "tensor_parallel_size": 4}
    async with reserved(config(tmp_path, engine=wide, trainer={"ranks": 8}, rollouts={"colocated": True})) as options:
        assert options.prm is None
        assert seen([*options.engines, options.ranks[0], options.ranks[7]]) == ["0,1,2,3", "4,5,6,7", "0", "7"]
        until_free(0)


async def test_a_prm_has_its_own_gpu_and_all_gpus_are_released(tmp_path: Path) -> None:
    process = {"scorer": {"prm": "prm"}}
    run = config(tmp_path, engine={"model": "m"}, trainer={"ranks": 2}, rollouts={"engines": 2}, process=process)
    async with reserved(run) as options:
        assert seen([*options.engines, *options.ranks, options.prm]) == ["0", "1", "2", "3", "4"]
    until_free(8)


async def test_engines_of_annotate_use_all_gpus_of_their_actor(random_policy_folder: Path, tmp_path: Path) -> None:
    """By default, vLLM would choose Ray workers, for which the actor's placement group has no GPU left."""

    class Deciding(EngineActor):
        async def load(self, config: CampaignConfig, number: int, bind_core: bool) -> None:
            from vllm.config.parallel import ParallelConfig

            from mmprm.sampling.arguments import engine_arguments

            arguments = engine_arguments(config.engine)
            size, chosen = arguments.tensor_parallel_size, arguments.distributed_executor_backend
            backends = [ParallelConfig(tensor_parallel_size=size, distributed_executor_backend=chosen)]
            backends += [ParallelConfig(tensor_parallel_size=size)]
            visible = os.environ["CUDA_VISIBLE_DEVICES"]
            raise SamplingError(f"{visible}: {' '.join(each.distributed_executor_backend for each in backends)}")

        async def close(self) -> None: ...

    engine = {"model": str(random_policy_folder), "tensor_parallel_size": 2}
    keys = {"output": str(tmp_path), "problems": {"path": "x"}, "engine": engine}
    workers = RayWorkers(build(CampaignConfig, keys))
    workers.actor_class = Deciding
    with workers:
        assert workers.count == 4
        with pytest.raises(SamplingError, match=r"^0,1: mp ray$"):
            await workers.make(0)
