"""Test a real vLLM pooling engine: parity with transformers, and rejected inputs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from mmprm.errors import DataError, SetupError
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.scoring import vllm_scorer
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.tiny.image import CELL
from mmprm.tiny.model import build_model
from mmprm.tiny.tokenizer import build_processor, build_tokenizer
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Problem, Solution
from tests.backbones import tiny_solutions, write_backbone

pytestmark = pytest.mark.integration


def random_prm(folder: Path) -> str:
    torch.manual_seed(0)
    model = build_model(build_tokenizer())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    model.save_pretrained(folder / "base")
    build_processor().save_pretrained(folder / "base")
    # Images of 2 × 3 cells are scaled down, so scores are equal only if both backends apply the limit.
    limits = {"max_pixels": 3 * CELL * CELL}
    prm = initialize_prm(str(folder / "base"), PrmTokens(), add_missing_tokens=True, pixel_limits=limits)
    save_prm(folder / "prm", prm)
    return str(folder / "prm")


def test_vllm_scores_equal_those_of_transformers(tmp_path: Path) -> None:
    prm, rng = random_prm(tmp_path), random.Random(0)
    solutions = [
        Solution(tiny.problem, tuple(solve(tiny, rng, Mistakes(0.3, 0.3)))) for tiny in make_problems(40, 0, "train")
    ]
    bare = Problem("bare", "what is one plus one?", "2")
    solutions.append(Solution(bare, ("1+1=2", "2")))

    local = open_scorer(ScorerConfig(prm=prm))
    expected = local.score(solutions)
    local.close()
    served = open_scorer(ScorerConfig(prm=prm, backend="vllm"))
    try:
        scores = served.score(solutions)
        with pytest.raises(DataError, match=r"problem bare: a solution of 600 steps has \d+ tokens"):
            served.score([*solutions, Solution(bare, ("a",) * 600)])
        after_a_refusal = served.score(solutions[-1:])
    finally:
        served.close()

    assert len({round(score, 2) for item in expected for score in item.scores}) > 10
    for got, wanted in zip(scores, expected, strict=True):
        assert got.scores == pytest.approx(wanted.scores, abs=1e-3)
    assert after_a_refusal[0].scores == pytest.approx(expected[-1].scores, abs=1e-3)


def test_vllm_scores_of_qwen3_vl_equal_those_of_transformers(tmp_path: Path) -> None:
    """Deepstack features enter several layers of the language model."""
    prm = initialize_prm(str(write_backbone("qwen3_vl", tmp_path / "base")), PrmTokens(), add_missing_tokens=True)
    with torch.no_grad():
        for weight in prm.model.parameters():
            weight.mul_(6.0 if weight.dim() > 1 else 1.0)
    save_prm(tmp_path / "prm", prm)
    solutions = tiny_solutions("qwen3_vl", 12)
    scores = []
    for backend in ("transformers", "vllm"):
        scorer = open_scorer(ScorerConfig(prm=str(tmp_path / "prm"), backend=backend, dtype="float32"))
        scores.append([score for each in scorer.score(solutions) for score in each.scores])
        scorer.close()
    assert max(scores[0]) - min(scores[0]) > 0.05
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_a_failed_start_of_a_scorer_process_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**arguments: object) -> None:
        raise Exception("WorkerProc initialization failed. See stack trace for root cause.")

    monkeypatch.setattr("vllm.LLM", fail)
    with pytest.raises(SetupError, match=r"m: the scorer did not start \(.*see its log"):
        vllm_scorer._engine(ScorerConfig(prm="m", backend="vllm", dtype="float32"), {}, 100)


def test_a_model_split_over_two_processes_scores_as_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_SIM_MULTI_NUMA", "1")  # vLLM binds each process to a separate NUMA node
    prm = random_prm(tmp_path)
    solutions = [Solution(tiny.problem, tuple(solve(tiny))) for tiny in make_problems(8, 0, "train")]
    local = open_scorer(ScorerConfig(prm=prm))
    expected = local.score(solutions)
    local.close()
    split = open_scorer(ScorerConfig(prm=prm, backend="vllm", tensor_parallel_size=2, kv_cache_gib=0.2))
    try:
        scores = split.score(solutions)
    finally:
        split.close()
    assert len({round(score, 2) for item in expected for score in item.scores}) > 10
    for got, wanted in zip(scores, expected, strict=True):
        assert got.scores == pytest.approx(wanted.scores, abs=1e-3)
