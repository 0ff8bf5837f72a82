"""Test a campaign on two real engines, one of which is killed while it generates."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.ray_worker import EngineActor, RayWorkers, RemoteWorker
from mcts.search import search
from mcts.worker import Report
from mmprm.config import load
from mmprm.errors import SamplingError
from mmprm.problems import write_problems
from mmprm.tiny.model import weights_path
from mmprm.tiny.tokenizer import build_tokenizer
from mmprm.tiny.world import make_problems
from mmprm.trees.store import Store
from mmprm.types import Rollout, Steps, Verdict

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def test_a_killed_engine_is_replaced_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_problems(tmp_path / "problems.jsonl", [tiny.problem for tiny in make_problems(16, 5, "annotate")])
    sets = [
        f"output={tmp_path}",
        f"problems.path={tmp_path / 'problems.jsonl'}",
        "workers=2",
        "search.max_rollouts=320",
    ]
    config = load(CampaignConfig, ROOT / "configs" / "annotate" / "tiny.yaml", sets)
    pids: dict[RemoteWorker, int] = {}
    killed: list[int] = []
    make, collect = RayWorkers.make, RemoteWorker.collect

    async def make_known(self: RayWorkers, number: int) -> RemoteWorker:
        worker = await make(self, number)
        pids[worker] = await worker._actor.__ray_call__.remote(lambda actor: os.getpid())
        return worker

    async def collect_then_kill(self: RemoteWorker, seconds: float) -> Report:
        report = await collect(self, seconds)
        if report.batches and not killed:
            os.kill(pids[self], signal.SIGKILL)
            killed.append(pids[self])
        return report

    monkeypatch.setattr(RayWorkers, "make", make_known)
    monkeypatch.setattr(RemoteWorker, "collect", collect_then_kill)
    summary = run_campaign(config, model_folder=str(weights_path()))

    assert (len(killed), summary.workers_replaced) == (1, 1)
    assert summary.problems == {"open": 0, "done": 16, "failed": 0}
    assert summary.rollouts == summary.new_rollouts, "acknowledged batches are not sampled again"
    assert summary.rollouts_correct > 0 < summary.rollouts_incorrect
    store = Store.read(tmp_path / "trees.sqlite")
    for problem in store.problems("done"):
        assert_log_is_one_search(store, problem.id, config)
    assert_ids_spell_their_steps(store)
    store.close()


def test_a_failed_engine_start_is_explained_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenActor(EngineActor):
        def open_engine(self, config: CampaignConfig, number: int, bind_core: bool) -> Any:
            raise SamplingError("the engine did not start: no memory")

    write_problems(tmp_path / "problems.jsonl", [tiny.problem for tiny in make_problems(2, 5, "annotate")])
    sets = [f"output={tmp_path}", f"problems.path={tmp_path / 'problems.jsonl'}", "workers=1"]
    config = load(CampaignConfig, ROOT / "configs" / "annotate" / "tiny.yaml", sets)
    monkeypatch.setattr(RayWorkers, "actor_class", BrokenActor)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(SamplingError, match="the engine did not start: no memory"):
            run_campaign(config, model_folder=str(weights_path()))
        assert [group["state"] for group in placement_group_table().values()] == ["REMOVED"]
    finally:
        ray.shutdown()


def assert_ids_spell_their_steps(store: Store) -> None:
    """Check that the token ids stored for each step decode to the step's text."""
    decode = build_tokenizer().decode
    rollouts = [
        rollout
        for problem_id in store.ids("done")
        for batch in store.batches(problem_id)
        for rollout in batch.rollouts
        if rollout.verdict is Verdict.INCORRECT and len(rollout.steps) > 1
    ]
    # rollouts that contain a special token have no step ids
    known = [rollout for rollout in rollouts if rollout.step_ids]
    assert len(known) > max(100, 0.95 * len(rollouts))
    for rollout in known:
        assert tuple(map(decode, rollout.step_ids)) == rollout.steps[:-1]


def assert_log_is_one_search(store: Store, problem_id: str, config: CampaignConfig) -> None:
    """Check that a replayed search uses each stored batch exactly once and needs no others."""
    log = {(batch.steps, batch.first_sample): batch.rollouts for batch in store.batches(problem_id)}
    sampled: Counter[Steps] = Counter()

    async def replay(steps: Steps, n: int) -> tuple[Rollout, ...]:
        rollouts = log.pop((steps, sampled[steps]))
        assert len(rollouts) == n
        sampled[steps] += n
        return rollouts

    coroutine = search(store.problem(problem_id), replay, config.search)
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    assert stopped.value.value.tree == store.tree(problem_id)
    assert not log
