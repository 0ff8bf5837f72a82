"""Test a campaign on a cluster whose nodes join and leave, simulated by several raylets on one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from mmprm.actors import NICENESS
from mmprm.problems import write_problems
from mmprm.tiny.world import make_problems
from mmprm.trees.store import Store
from mmprm.trees.tallies import sessions

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PROBLEMS = 120
START_SECONDS = 200
"""An engine on a busy machine takes a minute or more."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Start a head node without cores, so that engines run only on nodes added by a test."""
    ray.shutdown()
    monkeypatch.setenv(NICENESS, "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    yield cluster
    cluster.shutdown()


def add_node(cluster: Cluster) -> object:
    return cluster.add_node(num_cpus=1, object_store_memory=100_000_000)


def until_engines(campaign: subprocess.Popen[bytes], run: Path, count: int, seconds: float = START_SECONDS) -> None:
    """Wait until the campaign runs this number of engines."""
    end = time.monotonic() + seconds
    while engines(run) != count:
        assert campaign.poll() is None, "the campaign has ended"
        assert time.monotonic() < end, f"{engines(run)} engines, not {count}"
        time.sleep(0.2)


def engines(run: Path) -> int:
    if not (run / "trees.sqlite").is_file():
        return 0
    store = Store.read(run)
    try:
        return sessions(store)[-1].engines if sessions(store) else 0
    finally:
        store.close()


def test_one_raylet_is_killed_one_joins_late_and_one_leaves(cluster: Cluster, tmp_path: Path) -> None:
    first, second = add_node(cluster), add_node(cluster)
    write_problems(tmp_path / "problems.jsonl", [tiny.problem for tiny in make_problems(PROBLEMS, 5, "annotate")])
    run = tmp_path / "run"
    keys = [f"output={run}", f"problems.path={tmp_path / 'problems.jsonl'}", f"ray_address={cluster.address}"]
    sets = [word for key in (*keys, "search.max_rollouts=2000") for word in ("--set", key)]
    command = [sys.executable, "-m", "mmprm", "annotate", "--config", "configs/annotate/tiny.yaml", *sets]
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output) as campaign,
    ):
        try:
            until_engines(campaign, run, 2)
            cluster.remove_node(first, allow_graceful=False)
            until_engines(campaign, run, 1, 60)
            add_node(cluster)
            until_engines(campaign, run, 2)
            add_node(cluster)  # a third slot, which the campaign did not request
            until_engines(campaign, run, 3)
            cluster.remove_node(second, allow_graceful=True)
            assert campaign.wait(2 * START_SECONDS) == 0
        finally:
            campaign.kill()
            print(log.read_text())  # shown if the test fails
    assert "the cluster has capacity for more engines: starting 1" in log.read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["problems"] == {"open": 0, "done": PROBLEMS, "failed": 0}
    assert (summary["workers"], summary["rollouts"]) == (3, summary["new_rollouts"])
