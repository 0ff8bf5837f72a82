"""Test two raylets with simulated GPUs: weight transfer over nccl and ipc, sleep and wake-up, and tensor parallelism.

Engines run in vLLM's own processes, as on GPUs; tests/cuda_standins replaces the calls that need a GPU. A transfer that
changes a bit ends the run. Log-probabilities are not equal: in bfloat16, the kernels of vLLM and transformers round the
same weights differently. They differ by 0.03 to 0.05 nats per token of the probe, which is very unlikely under this
policy (−15 nats per token), and by less than 0.001 on the policy's own responses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from mmprm.actors import NICENESS
from mmprm.problems import write_problems
from mmprm.tiny.world import make_problems

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STAND_INS = ROOT / "tests/cuda_standins"
STEPS, ENGINES, RANKS = 3, 2, 2


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the stand-ins in all processes started from here on, and return the folder of their events."""
    folder = tmp_path_factory.mktemp("standins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMPRM_CUDA_STANDINS", str(folder))
        patch.setenv("PYTHONPATH", f"{STAND_INS}:{ROOT}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv(NICENESS, "0")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # both workers of an engine share the only NUMA node here
        yield folder
    for path in Path("/dev/shm").glob("mmprm-standin-*"):
        path.unlink()


@pytest.fixture(scope="module")
def cluster(events: Path) -> Iterator[Cluster]:
    ray.shutdown()
    node = {"num_cpus": 1, "num_gpus": 2, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


def run_command(name: str, config: str, *keys: str) -> None:
    sets = [word for key in keys for word in ("--set", key)]
    command = [sys.executable, "-m", "mmprm", name, "--config", str(ROOT / "configs" / config), *sets]
    outside = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=outside, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def train(cluster: Cluster, folder: Path, *changes: str) -> list[dict[str, Any]]:
    """Run STEPS steps with two ZeRO-3 ranks and two engines; return their metrics."""
    write_problems(folder / "train.jsonl", [tiny.problem for tiny in make_problems(12, seed=0, split="train")])
    keys = (
        f"output={folder / 'run'}",
        f"problems.path={folder / 'train.jsonl'}",
        "held_out=null",
        f"ray_address={cluster.address}",
        f"steps={STEPS}",
        "batch={prompts: 4, group_size: 4}",
        "sampling.max_tokens=48",
        "engine.mode=separate",
        f"rollouts.engines={ENGINES}",
        f"trainer.ranks={RANKS}",
        "trainer.optimization.zero_stage=3",
        "trainer.optimization.precision=bf16",
        "engine.dtype=bfloat16",
        *changes,
    )
    run_command("rl", "rl/tiny.yaml", *keys)
    rows = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "train"]


def seen(events: Path) -> list[str]:
    """Return the events since the last call."""
    file = events / "events"
    found = file.read_text().splitlines()
    file.unlink()
    return found


def assert_steps(steps: list[dict[str, Any]]) -> None:
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert all(step["mismatch_absolute"] < 0.002 for step in steps), "engines sample with the trainer's weights"
    assert all(step["probe_distance"] < 0.1 for step in steps)
    assert any(step["updates"] for step in steps)


def test_nccl_weights_reach_engines_on_separate_gpus(cluster: Cluster, events: Path, tmp_path: Path) -> None:
    assert_steps(train(cluster, tmp_path))
    found = Counter(seen(events))
    world = 1 + ENGINES
    assert {name for name in found if "rank" in name} == {f"nccl rank {rank} of {world}" for rank in range(world)}
    sent = sum(count for name, count in found.items() if name.startswith("nccl broadcast"))
    assert sent >= STEPS + 1, "initial weights are sent too"
    assert not any(name.startswith("sleep") for name in found)


def test_ipc_weights_reach_engines_asleep_on_the_ranks_gpus(cluster: Cluster, events: Path, tmp_path: Path) -> None:
    assert_steps(train(cluster, tmp_path, "rollouts.colocated=true"))
    found = Counter(seen(events))
    syncs = STEPS + 1
    assert found["sleep 2"] == found["wake weights"] == found["wake kv_cache"] == ENGINES * syncs
    assert found[f"buffer {2**30}"] == RANKS * syncs
    assert not any(name.startswith("nccl") for name in found)


def test_engines_of_two_gpus_annotate(cluster: Cluster, tmp_path: Path) -> None:
    """Tensor parallelism runs in vLLM's own worker processes, inside the placement group of the engine's actor."""
    write_problems(tmp_path / "problems.jsonl", [tiny.problem for tiny in make_problems(2, 5, "annotate")])
    keys = (
        f"output={tmp_path / 'run'}",
        f"problems.path={tmp_path / 'problems.jsonl'}",
        f"ray_address={cluster.address}",
        "engine.tensor_parallel_size=2",
        "engine.kv_cache_gib=0.1",
        "search.max_rollouts=64",
        "workers=1",
    )
    run_command("annotate", "annotate/tiny.yaml", *keys)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["problems"] == {"open": 0, "done": 2, "failed": 0}
