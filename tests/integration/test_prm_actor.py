"""Test the Ray actor that runs a PRM: scores, crashes, rejected solutions, time limits, and a remote server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import ray
import torch
from served import StepScorer, make_service, running

from mmprm.config import build
from mmprm.errors import CheckpointError, DataError, EngineStoppedError, TrainingError
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.steps import plain
from mmprm.tiny.tokenizer import END, build_tokenizer
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Problem, Solution
from policy_rl.rewards.prm_actor import RemotePrm
from policy_rl.rewards.process import ProcessConfig, ProcessReward
from policy_rl.types import Response

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

BARE = Problem("bare", "what is one plus one?", "2")


@pytest.fixture(scope="module")
def prm_folder(random_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("prm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_prm(folder, initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True))
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    yield
    ray.shutdown()


def solutions(count: int) -> list[Solution]:
    rng = random.Random(0)
    return [
        Solution(tiny.problem, tuple(plain(step, "tags") for step in solve(tiny, rng, Mistakes(0.3, 0.3))))
        for tiny in make_problems(count, 0, "train")
    ]


def config(prm: str, **values: object) -> ProcessConfig:
    return build(ProcessConfig, {"scorer": {"prm": prm}, **values})


@pytest.fixture(scope="module")
def asked() -> list[Solution]:
    return solutions(24)


@pytest.fixture(scope="module")
def expected(prm_folder: str, asked: list[Solution]) -> list[Sequence[float]]:
    """Return the scores of `asked` from a scorer in this process."""
    local = open_scorer(ScorerConfig(prm=prm_folder))
    scores = [each.scores for each in local.score(asked)]
    local.close()
    return scores


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prm(prm_folder: str) -> AsyncIterator[RemotePrm]:
    prm = await RemotePrm.start(config(prm_folder))
    yield prm
    prm.close()


async def check_groups(prm: RemotePrm, asked: list[Solution], expected: list[Sequence[float]]) -> None:
    """Score `asked` in concurrent groups of four and compare the results."""
    groups = [asked[start : start + 4] for start in range(0, len(asked), 4)]
    answers = await asyncio.gather(*(prm.judge(group) for group in groups))
    for answer, scores in zip([each for group in answers for each in group], expected, strict=True):
        assert answer.scores == pytest.approx(scores, abs=1e-5)


async def test_many_groups_at_once(prm: RemotePrm, asked: list[Solution], expected: list[Sequence[float]]) -> None:
    await check_groups(prm, asked, expected)
    assert len(prm.processes) == 1


async def test_a_rejected_solution_does_not_affect_its_group(
    prm: RemotePrm, asked: list[Solution], expected: list[Sequence[float]]
) -> None:
    good, bad = await prm.judge([asked[0], Solution(BARE, ("a",) * 600)])
    assert good.scores == pytest.approx(expected[0], abs=1e-5)
    assert isinstance(bad, DataError)
    assert "problem bare: a solution of 600 steps has" in str(bad)


async def test_restarts_within_the_limit_lose_no_scores(
    prm_folder: str, asked: list[Solution], expected: list[Sequence[float]]
) -> None:
    mortal = await RemotePrm.start(config(prm_folder, max_restarts=1))
    try:
        os.kill(*mortal.processes, signal.SIGKILL)
        await check_groups(mortal, asked, expected)
        assert len(mortal.processes) == 2
        for process in mortal.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"has stopped after at most 1 restarts .process\.max_restarts."):
            await mortal.judge(asked[:1])
    finally:
        mortal.close()


async def test_a_command_runs_instead_of_the_prm_and_another_prm_replaces_it(
    prm_folder: str, asked: list[Solution], expected: list[Sequence[float]], tmp_path: Path
) -> None:
    prm = await RemotePrm.start(config(prm_folder))
    try:
        copy = shutil.copytree(prm_folder, tmp_path / "prm")
        script = "import os; print(os.environ['OMP_NUM_THREADS'], 'trained')"
        await prm.run_instead([sys.executable, "-c", script], tmp_path / "log", 60)
        assert (tmp_path / "log").read_text() == "1 trained\n"
        await prm.replace(copy)
        await check_groups(prm, asked, expected)
        assert len(prm.processes) == 1
        with pytest.raises(TrainingError, match=r"exit code 3: no memory; see .*log, and run the same command again"):
            await prm.run_instead([sys.executable, "-c", "print('no memory'); exit(3)"], tmp_path / "log", 60)
    finally:
        prm.close()


async def test_responses_of_a_policy_get_scores_on_their_tokens(prm: RemotePrm, prm_folder: str) -> None:
    tokenizer, (tiny,) = build_tokenizer(), make_problems(1, 0, "train")
    verbatim = solve(tiny, random.Random(0), Mistakes(0.0, 0.0))
    text, steps = "".join(verbatim), tuple(plain(step, "tags") for step in verbatim)
    ids = (*tokenizer.encode(text, add_special_tokens=False), tokenizer.convert_tokens_to_ids(END))
    response = Response(text, ids, (0.0,) * len(ids), "stop")
    local = open_scorer(ScorerConfig(prm=prm_folder))
    (expected,) = local.score([Solution(tiny.problem, steps)])
    local.close()

    process = ProcessReward(tokenizer, "tags", "", prm)
    cut_off = replace(response, text=tokenizer.decode(ids[:2]), token_ids=ids[:2], logprobs=(0.0,) * 2)
    scored, none = await process.score(tiny.problem, [response, cut_off])
    assert scored.scores == pytest.approx(expected.scores, abs=1e-5)
    assert len(scored.scores) == len(steps)
    ends = [options for options, token in enumerate(ids) if tokenizer.decode([token]) in ("</step>", "</answer>")]
    assert [scored.step_of_token[options] for options in ends] == list(range(len(steps)))
    assert [scored.step_of_token[options + 1] for options in ends[:-1]] == list(range(1, len(steps)))
    assert scored.step_of_token[-1] == len(steps) - 1
    assert none is None
    assert process.unscored == {"unclosed step": 1}


async def test_an_invalid_prm_folder_and_a_start_timeout_are_errors(
    random_policy_folder: Path, prm_folder: str
) -> None:
    with pytest.raises(CheckpointError, match=r"has no prm\.json"):
        await RemotePrm.start(config(str(random_policy_folder)))
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"waiting for the PRM .* to load; it books .*; lower the resources"):
        await RemotePrm.start(config(prm_folder, start_timeout_seconds=0.2))
    assert time.monotonic() - started < 60


async def test_missing_scores_time_out(
    prm: RemotePrm, prm_folder: str, asked: list[Solution], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prm, "_config", config(prm_folder, score_timeout_seconds=0.001))
    with pytest.raises(TrainingError, match=r"timed out after 0\.001 s waiting for 8 scores of the PRM .* for problem"):
        await prm.judge(asked[:8])


async def test_a_server() -> None:
    scorer = StepScorer()
    with running(make_service(lambda: scorer)) as url:
        server = {"urls": [url], "attempts": 2, "backoff_seconds": 0.02}
        prm = await RemotePrm.start(build(ProcessConfig, {"scorer": {"backend": "server", "server": server}}))
        try:
            judged, refused = await prm.judge([Solution(BARE, ("0.25", "0.5")), Solution(BARE, ("refuse",))])
            assert judged.scores == (0.25, 0.5)
            assert isinstance(refused, DataError)
            scorer.dead = True
            process = ProcessReward(build_tokenizer(), "blank_lines", "", prm)
            ids = tuple(build_tokenizer().encode("1\n\n0", add_special_tokens=False))
            with pytest.raises(EngineStoppedError, match=r"http://127\.0\.0\.1:\d+: "):
                await process.score(BARE, [Response("1\n\n0", ids, (0.0,) * len(ids), "stop")])
        finally:
            prm.close()
