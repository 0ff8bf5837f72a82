"""Test `mmprm serve` as a process: startup, requests, and shutdown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from served import ask, client, until

from mmprm.errors import DataError
from mmprm.prm.info import PrmTokens, read_info, write_info
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.scoring.config import ScorerConfig, ServerConfig
from mmprm.scoring.http.remote import RemoteScorer
from mmprm.scoring.open import open_scorer
from mmprm.tiny.world import make_problems, solve
from mmprm.types import Problem, Solution

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def prm(random_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("serve") / "prm"
    torch.manual_seed(0)
    model = initialize_prm(str(random_policy_folder), PrmTokens(), add_missing_tokens=True)
    with torch.no_grad():
        for weight in model.model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    save_prm(folder, model)
    write_info(folder, read_info(folder).model_copy(update={"aggregator": "min"}))
    return str(folder)


@contextmanager
def serving(prm: str, backend: str, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    sets = [f"scorer.prm={prm}", f"scorer.backend={backend}", "port=0", "api_key_env=SERVE_KEY"]
    sets.append("scorer.kv_cache_gib=0.25")
    command = [sys.executable, "-m", "mmprm", "serve", *(part for item in sets for part in ("--set", item))]
    with log.open("w") as err:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err, text=True, env=os.environ | {"SERVE_KEY": "sk-secret"}
        )
    try:
        url = process.stdout.readline().split()[2]
        until(lambda: ready(url, process), 300)
        yield process, url
    finally:
        process.kill()
        process.wait()


def ready(url: str, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, "the server has exited"
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
    finally:
        time.sleep(0.1)


def test_sigterm_finishes_accepted_requests(prm: str, tmp_path: Path) -> None:
    key = {"Authorization": "Bearer sk-secret"}
    long = ask(*["1+1=2"] * 100)
    with serving(prm, "transformers", tmp_path / "log") as (process, url), client(url, headers=key) as http:
        with ThreadPoolExecutor(4) as pool:
            named = [[long | {"id": f"{request}.{number}"} for number in range(24)] for request in range(4)]
            taken = [pool.submit(http.post, "/v1/score/batch", json={"solutions": batch}) for batch in named]
            until(lambda: "mmprm_in_flight_requests 4.0" in http.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            until(lambda: http.get("/health").status_code == 503)
            refused = http.post("/v1/score", json=ask("1"))
            answers = [answer.result() for answer in taken]
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "closing")
        assert [answer.status_code for answer in answers] == [200] * 4
        assert all(len(result["scores"]) == 100 for answer in answers for result in answer.json()["results"])
        assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "sk-secret" not in log
    assert "Traceback" not in log


def test_served_vllm_scores_equal_those_of_transformers(
    prm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_KEY", "sk-secret")
    problems = make_problems(20, 0, "train")
    solutions = [Solution(tiny.problem, tuple(solve(tiny))) for tiny in problems]
    solutions.append(Solution(Problem("bare", "what is one plus one?", "2"), ("1+1=2", "2")))
    local = open_scorer(ScorerConfig(prm=prm))
    expected = local.score(solutions)
    local.close()
    with serving(prm, "vllm", tmp_path / "log") as (process, url):
        scorer = RemoteScorer(ServerConfig(urls=(url,), api_key_env="SERVE_KEY"))
        scores = scorer.score(solutions)
        with pytest.raises(DataError, match=r"problem long: a solution of 600 steps has \d+ tokens"):
            scorer.score([*solutions, Solution(Problem("long", "q", ""), ("a",) * 600)])
        again = scorer.score(solutions[:1])
        scorer.close()
        assert httpx.get(f"{url}/v1/model").status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    for got, wanted in zip(scores, expected, strict=True):
        assert got.scores == pytest.approx(wanted.scores, abs=1e-3)
    assert again[0].scores == pytest.approx(expected[0].scores, abs=1e-3)
