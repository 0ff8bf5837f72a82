"""Test a campaign on a remote server: its trees equal those of a local engine, and an outage loses nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Act, ScriptedServer, error, says

from mcts.campaign import run_campaign
from mcts.worker import LocalWorker
from mmprm.errors import GradingError, SamplingError
from mmprm.sampling.scripted import ScriptedSampler
from mmprm.trees.store import Store
from mmprm.types import Batch, Problem
from tests.mcts import scripted_campaign as scripted

PROBLEMS = 6


def policy(request: dict[str, Any]) -> Act:
    """Serve the scripted policy over HTTP and yield its URL."""
    question, *prefix = [turn["content"] for turn in request["messages"]]
    problem = Problem("", question, question.split()[-1])
    generators = [random.Random(request["seed"] + i) for i in range(request["n"])]
    texts = [scripted.write(problem, "".join(prefix), rng) for rng in generators]
    counts = sum(len(text.split()) for text in texts)
    return says(*texts, top={"usage": {"completion_tokens": counts}, "prompt_text": question + "".join(prefix)})


@pytest.fixture
def problems(tmp_path: Path) -> str:
    return str(scripted.write_problems(tmp_path, PROBLEMS))


def served(problems: str, run: Path, *servers: ScriptedServer, **values: Any):
    client = {"urls": [server.url for server in servers], "attempts": 2, "backoff_seconds": 0.01, "concurrency": 8}
    engine = {"model": "scripted", "servers": client}
    return scripted.config(problems, str(run), engine=engine, prompt={"preset": "plain"}, workers=None, **values)


def scripted_problem(problems: str, folder: Path, number: int) -> str:
    """Return a problem file with one of the problems."""
    path = folder / "one.jsonl"
    path.write_text(Path(problems).read_text().splitlines()[number] + "\n")
    return str(path)


def batches(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the batches without token counts, which a server reports per request and not per sample."""

    def seen(batch: Batch) -> tuple[Any, ...]:
        return batch.steps, batch.first_sample, [(rollout.text, rollout.verdict) for rollout in batch.rollouts]

    return {problem_id: [seen(batch) for batch in log] for problem_id, log in scripted.batches(run).items()}


def test_two_servers_give_the_trees_of_an_engine(tmp_path: Path) -> None:
    """There are enough problems that both servers get some: a problem's server depends on the servers' random ports."""
    problems = str(scripted.write_problems(tmp_path, 24))
    with ScriptedServer(policy) as first, ScriptedServer(policy) as second:
        summary = run_campaign(served(problems, tmp_path / "served", first, second))
    assert summary.problems == {"open": 0, "done": 24, "failed": 0}
    assert (summary.workers, summary.labels > 20) == (2, True)
    assert first.requests
    assert second.requests
    by_problem = [{request["messages"][0]["content"] for request in server.requests} for server in (first, second)]
    assert not by_problem[0] & by_problem[1], "a problem always uses the same server"

    local = served(problems, tmp_path / "local", first)

    async def make(number: int) -> LocalWorker:
        return LocalWorker(
            ScriptedSampler(scripted.write), scripted.Grader(), local.step_format, local.seed, local.search
        )

    run_campaign(local, make_worker=make)
    assert batches(tmp_path / "served") == batches(tmp_path / "local")


def test_an_outage_fails_no_problem_and_the_run_continues(problems: str, tmp_path: Path) -> None:
    """The server takes its time for an error, so that the requests before it have been answered."""
    with (
        ScriptedServer(*[policy] * 20, replace(error(503, "gone"), wait=0.3)) as server,
        pytest.raises(SamplingError, match=r"status 503: gone.*finished batches are kept"),
    ):
        run_campaign(served(problems, tmp_path / "run", server, max_restarts=1))
    store = Store.read(tmp_path / "run" / "trees.sqlite")
    assert store.summary().problems["failed"] == 0
    assert store.summary().rollouts == sum(request["n"] for request in server.requests[:20])
    store.close()
    with ScriptedServer(policy) as server:
        assert run_campaign(served(problems, tmp_path / "run", server)).problems["done"] == PROBLEMS
        asked = len(server.requests)
        run_campaign(served(problems, tmp_path / "undisturbed", server))
        assert len(server.requests) - asked == asked + 20
    assert batches(tmp_path / "run").keys() == batches(tmp_path / "undisturbed").keys()
    for problem_id, log in batches(tmp_path / "undisturbed").items():
        assert sorted(batches(tmp_path / "run")[problem_id], key=str) == sorted(log, key=str)


def test_an_outage_does_not_fail_the_last_open_problem(problems: str, tmp_path: Path) -> None:
    Path(problems).write_text(Path(problems).read_text().splitlines()[0])
    with ScriptedServer(*[policy] * 3, error(503, "gone")) as server, pytest.raises(SamplingError, match="503: gone"):
        run_campaign(served(problems, tmp_path / "run", server))
    store = Store.read(tmp_path / "run" / "trees.sqlite")
    assert store.summary().problems == {"open": 1, "done": 0, "failed": 0}
    assert store.summary().rollouts > 0
    store.close()


def test_a_rejected_request_fails_only_its_problem(problems: str, tmp_path: Path) -> None:
    def refusing(request: dict[str, Any]) -> Act:
        return error(400, "too long") if request["messages"][0]["content"] == "question 2" else policy(request)

    with ScriptedServer(refusing) as server:
        summary = run_campaign(served(problems, tmp_path / "run", server))
    assert summary.problems == {"open": 0, "done": PROBLEMS - 1, "failed": 1}
    assert summary.failures.keys() == {"p2"}
    assert summary.failures["p2"].startswith(f"problem p2: {server.url}: status 400: too long")


def test_the_last_open_problem_fails_alone_too(problems: str, tmp_path: Path) -> None:
    """With no other request in flight, the server is probed with one token before the problem is blamed."""

    def failing(request: dict[str, Any]) -> Act:
        return error(500, "bad image") if request["messages"][0]["content"] == "question 2" else policy(request)

    with ScriptedServer(lambda request: says("1") if request["max_tokens"] == 1 else failing(request)) as server:
        values = scripted_problem(problems, tmp_path, 2)
        summary = run_campaign(served(values, tmp_path / "run", server))
    assert summary.problems == {"open": 0, "done": 0, "failed": 1}
    assert "status 500: bad image" in summary.failures["p2"]


def test_a_judge_without_calibration_stops_the_campaign_before_it_begins(problems: str, tmp_path: Path) -> None:
    judge = {
        "model": "judge",
        "client": {"urls": ["http://127.0.0.1:9/v1"]},
        "calibration": str(tmp_path / "none.json"),
    }
    with ScriptedServer(policy) as server:
        with pytest.raises(GradingError, match=r"none\.json: cannot be read.*mmprm grade --calibrate"):
            run_campaign(served(problems, tmp_path / "run", server, grader={"judge": judge}))
        assert not server.requests
    assert not (tmp_path / "run").exists()


def test_the_store_records_the_judge(problems: str, tmp_path: Path) -> None:
    without = served(problems, tmp_path, ScriptedServerStub())
    judge = {"model": "judge", "client": {"urls": ["http://127.0.0.1:9/v1"]}}
    with_judge = served(problems, tmp_path, ScriptedServerStub(), grader={"judge": judge})
    assert without.resume_key()["grader"]["judge"] is None
    assert with_judge.resume_key()["grader"]["judge"] == {"model": "judge"}
    assert "servers" not in without.resume_key()["engine"]


class ScriptedServerStub:
    url = "http://127.0.0.1:9/v1"
