"""Test campaigns: failing problems, dying engines, resuming, and the summary."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from dying_workers import DeadWorker, DyingWorker, engine_times

from mcts.campaign import SUMMARY_NAME, run_campaign
from mcts.progress import CampaignSummary
from mcts.search import SearchConfig
from mcts.worker import LocalWorker, Report, WorkerDiedError
from mmprm.errors import EngineStoppedError, SamplingError, StoreError
from mmprm.trees.evidence import count_labeled_prefixes
from mmprm.trees.store import Finished, Store
from mmprm.types import Batch, Completion, Problem, SampleRequest
from tests.mcts import scripted_campaign as scripted
from tests.mcts.scripted_campaign import PROBLEMS, batches


def annotate(problems: Path, run: Path, **values: object) -> CampaignSummary:
    chosen = scripted.config(str(problems), str(run), **values)

    async def make(number: int) -> LocalWorker:
        return scripted.local_worker(chosen)

    return run_campaign(chosen, make_worker=make)


def labels(run: Path) -> int:
    store = Store.read(run / "trees.sqlite")
    try:
        return sum(count_labeled_prefixes(tree, SearchConfig(rollouts=4, max_rollouts=80)) for tree in store.trees())
    finally:
        store.close()


def test_summary_agrees_with_the_store(problems: Path, tmp_path: Path) -> None:
    summary = annotate(problems, tmp_path / "run")
    logs = batches(tmp_path / "run")
    sampled = [batch for log in logs.values() for batch in log]
    assert summary.problems == {"open": 0, "done": PROBLEMS, "failed": 0}
    assert sum(summary.ended.values()) == PROBLEMS
    assert summary.rollouts == summary.new_rollouts == sum(len(batch.rollouts) for batch in sampled)
    assert summary.labels == labels(tmp_path / "run") >= summary.states - PROBLEMS > 100
    assert summary.tokens == sum(rollout.token_count for batch in sampled for rollout in batch.rollouts)
    assert summary.trees_in_flight_max == 16
    assert summary.workers == 2
    assert json.loads((tmp_path / "run" / SUMMARY_NAME).read_text())["labels"] == summary.labels


def test_a_finished_run_asks_for_nothing_again(problems: Path, tmp_path: Path) -> None:
    first = annotate(problems, tmp_path / "run")
    again = annotate(problems, tmp_path / "run")
    assert (again.new_rollouts, again.trees_in_flight_max) == (0, 0)
    assert (again.rollouts, again.labels, again.ended) == (first.rollouts, first.labels, first.ended)


def test_the_number_of_concurrent_trees_changes_no_batch(problems: Path, tmp_path: Path) -> None:
    annotate(problems, tmp_path / "many")
    annotate(problems, tmp_path / "one", workers=1, trees_in_flight=1)
    assert batches(tmp_path / "many") == batches(tmp_path / "one")


def committed(run: Path) -> int:
    try:
        return sum(map(len, batches(run).values()))
    except StoreError:  # the driver has not created the store yet
        return 0


def test_killed_at_any_moment_it_ends_as_if_undisturbed(problems: Path, tmp_path: Path) -> None:
    """The driver is killed with SIGKILL repeatedly, each time a few batches later, until one run ends."""
    annotate(problems, tmp_path / "undisturbed")
    run, moment = tmp_path / "killed", random.Random(0)
    finished: list[int] = []
    while True:
        driver = subprocess.Popen([sys.executable, scripted.__file__, str(problems), str(run)])
        goal = (finished[-1] if finished else 0) + moment.randrange(60)
        while driver.poll() is None and committed(run) < goal:
            time.sleep(0.01 * moment.random())
        if driver.poll() is not None:
            assert driver.returncode == 0
            break
        driver.kill()
        driver.wait()
        finished.append(committed(run))
    assert len(finished) >= 3
    assert finished == sorted(finished), "nothing that was committed is lost"
    assert len(set(finished)) > 1, "kills must come at different points"
    assert batches(run) == batches(tmp_path / "undisturbed")


def test_a_problem_that_fails_is_listed_and_the_others_continue(problems: Path, tmp_path: Path) -> None:
    with problems.open("a") as file:
        file.write(json.dumps({"id": "bad", "question": "missing.png", "answer": "1"}) + "\n")
    summary = annotate(problems, tmp_path / "run")
    assert summary.problems == {"open": 0, "done": PROBLEMS, "failed": 1}
    assert summary.failures == {"bad": "missing.png: the image cannot be read"}


def test_a_different_configuration_is_rejected_but_more_workers_are_allowed(problems: Path, tmp_path: Path) -> None:
    annotate(problems, tmp_path / "run")
    with pytest.raises(StoreError, match=r"search\.rollouts \(stored 4, asked 8\)"):
        annotate(problems, tmp_path / "run", search={"rollouts": 8, "max_rollouts": 80})
    annotate(problems, tmp_path / "run", workers=1, trees_in_flight=3)


def test_problems_of_a_dead_worker_move_to_another_one(problems: Path, tmp_path: Path) -> None:
    annotate(problems, tmp_path / "undisturbed")
    chosen = scripted.config(str(problems), str(tmp_path / "run"), commit_seconds=0.002)
    made: list[int] = []

    async def make(number: int) -> LocalWorker:
        made.append(number)
        kind = DyingWorker if len(made) < 5 else LocalWorker
        sampler = scripted.Sampler(scripted.write, 0.002)
        return kind(sampler, scripted.Grader(), chosen.step_format, chosen.seed, chosen.search)

    summary = run_campaign(chosen, make_worker=make)
    assert summary.workers_replaced == len(made) - 2 >= 3
    assert summary.rollouts == summary.new_rollouts, "what was committed is not sampled again"
    assert batches(tmp_path / "run") == batches(tmp_path / "undisturbed")


class PoisonedSampler(scripted.Sampler):
    """Stops the engine, with all requests in flight, when p3 is requested."""

    gone = False

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.gone = self.gone or request.problem.id == "p3"
        if self.gone:
            await asyncio.sleep(60)
        return await super().sample(request)


class MortalWorker(LocalWorker):
    async def collect(self, seconds: float) -> Report:
        report = await super().collect(seconds)
        if self._sampler.gone:
            raise WorkerDiedError("out of memory")
        return report


@pytest.mark.parametrize(("workers", "trees_in_flight"), [(1, 1), (1, 8), (1, None), (2, 8)])
def test_a_problem_that_kills_engines_fails_and_the_others_continue(
    problems: Path, tmp_path: Path, workers: int, trees_in_flight: int | None
) -> None:
    annotate(problems, tmp_path / "undisturbed")
    run = tmp_path / "run"
    chosen = scripted.config(str(problems), str(run), workers=workers, trees_in_flight=trees_in_flight)

    async def make(number: int) -> LocalWorker:
        sampler = PoisonedSampler(scripted.write, 0.002)
        return MortalWorker(sampler, scripted.Grader(), chosen.step_format, chosen.seed, chosen.search)

    summary = run_campaign(chosen, make_worker=make)
    assert summary.problems == {"open": 0, "done": PROBLEMS - 1, "failed": 1}
    assert list(summary.failures) == ["p3"]
    assert re.fullmatch(r"its engine died [4-9] times: out of memory", summary.failures["p3"])
    assert batches(run) == batches(tmp_path / "undisturbed") | {"p3": []}


def test_a_worker_that_keeps_dying_is_given_up_while_others_continue(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = scripted.config(str(problems), str(tmp_path / "run"))
    made: list[int] = []

    async def make(number: int) -> LocalWorker:
        made.append(number)
        kind = DeadWorker if number == 0 else LocalWorker
        sampler = scripted.Sampler(scripted.write, 0.002)
        return kind(sampler, scripted.Grader(), chosen.step_format, chosen.seed, chosen.search)

    summary = run_campaign(chosen, make_worker=make)
    assert summary.problems == {"open": 0, "done": PROBLEMS, "failed": 0}
    assert (made.count(0), made.count(1), summary.workers_replaced) == (4, 1, 3)
    said = capsys.readouterr().err
    assert "worker 0 died 4 times without finishing a batch: killed; continuing with the remaining workers" in said


@pytest.mark.parametrize("broken", [{0}, {0, 1}])
def test_a_campaign_ends_when_its_last_engine_fails_to_start(
    broken: set[int], problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = scripted.config(str(problems), str(tmp_path / "run"))

    async def make(number: int) -> LocalWorker:
        if number in broken:
            raise SamplingError("no memory is left")
        return scripted.local_worker(chosen)

    if len(broken) == 2:
        with pytest.raises(SamplingError, match=r"engine 1 does not start: no memory is left; finished batches"):
            run_campaign(chosen, make_worker=make)
        return
    assert run_campaign(chosen, make_worker=make).problems == {"open": 0, "done": PROBLEMS, "failed": 0}
    said = capsys.readouterr().err
    assert "engine 0 does not start: no memory is left; continuing with the remaining workers" in said


def test_an_engine_that_never_starts_is_not_waited_for_at_the_end(problems: Path, tmp_path: Path) -> None:
    chosen = scripted.config(str(problems), str(tmp_path / "run"))

    async def make(number: int) -> LocalWorker:
        if number:
            await asyncio.sleep(3600)
        return scripted.local_worker(chosen)

    summary = run_campaign(chosen, make_worker=make)
    assert summary.problems == {"open": 0, "done": PROBLEMS, "failed": 0}
    assert summary.workers == 1
    (session,) = engine_times(tmp_path / "run")
    assert session.engine_seconds == session.seconds > 0, "only one of the two requested engines worked"


def test_an_engine_that_hangs_is_announced_and_commits_nothing(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmprm.actors.NOTICE_SECONDS", 0.1)
    commits: list[int] = []
    append = Store.append

    def append_counted(self: Store, batches: Sequence[Batch], finished: Sequence[Finished] = ()) -> None:
        commits.append(len(batches) + len(finished))
        append(self, batches, finished)

    monkeypatch.setattr(Store, "append", append_counted)
    chosen = scripted.config(str(problems), str(tmp_path / "run"), workers=1)

    async def make(number: int) -> LocalWorker:
        return scripted.local_worker(chosen, delay=0.25)

    chosen = chosen.model_copy(update={"search": SearchConfig(rollouts=4, max_rollouts=4)})
    run_campaign(chosen, make_worker=make)
    assert "waiting for worker 0 to report on 8 problems" in capsys.readouterr().err
    assert min(commits) > 0


class StoppedSampler:
    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        raise EngineStoppedError("the engine has stopped: out of memory")


def test_an_engine_that_keeps_stopping_fails_the_campaign_and_no_problem(problems: Path, tmp_path: Path) -> None:
    chosen = scripted.config(str(problems), str(tmp_path / "run"))

    async def make(number: int) -> LocalWorker:
        return LocalWorker(StoppedSampler(), scripted.Grader(), chosen.step_format, chosen.seed, chosen.search)

    with pytest.raises(SamplingError, match=r"died 4 times without finishing a batch: .*out of memory"):
        run_campaign(chosen, make_worker=make)
    store = Store.read(tmp_path / "run" / "trees.sqlite")
    assert len(store.ids("open")) == PROBLEMS
    store.close()


async def test_a_worker_reports_early_when_a_problem_has_ended() -> None:
    chosen = scripted.config("unused", "unused")
    worker = scripted.local_worker(chosen, delay=0.0)
    await worker.start(Problem("p", "question", "1"), [])
    began = time.monotonic()
    reports: Sequence[Report] = [await worker.collect(seconds=120)]
    assert time.monotonic() - began < 60
    assert [end.problem_id for report in reports for end in report.finished] == ["p"]
    await worker.close()
