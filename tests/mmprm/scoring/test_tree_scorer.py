"""Test that scoring the solutions of a problem as one tree gives the scores of separate sequences."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmprm.errors import DataError
from mmprm.prm.info import PrmTokens, read_info
from mmprm.prm.model import initialize_prm, save_prm
from mmprm.prm.packing import Marks, pack_solutions
from mmprm.prm.scoring_model import load_scoring_model
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.transformers_scorer import TransformersScorer
from mmprm.tiny.world import make_problems
from mmprm.types import Solution
from tests.backbones import BACKBONES, tiny_solutions, write_backbone


def beams(name: str) -> list[Solution]:
    """Return eight solutions for each of three problems in mixed order, with one duplicate per problem."""
    found = []
    for solution in tiny_solutions(name, 3):
        steps = solution.steps
        tails = [(f"{steps[-1][:-1]}{digit}",) for digit in range(4)]
        paths = [steps, *((*steps[:-1], *tail) for tail in tails), *((*steps[:1], *tail) for tail in tails[:2]), steps]
        found += [replace(solution, steps=path) for path in paths]
    return found[::3] + found[1::3] + found[2::3]


def scorers(folder: Path, **config: object) -> list[TransformersScorer]:
    return [TransformersScorer(ScorerConfig(prm=str(folder), share_prefixes=s, **config)) for s in (False, True)]


@pytest.fixture(scope="module", params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name)
    save_prm(folder / "prm", initialize_prm(str(write_backbone(name, folder / "base")), PrmTokens()))
    return folder / "prm"


@pytest.mark.parametrize("batch_tokens", [16384, 120])
def test_tree_scores_equal_those_of_separate_sequences(name: str, folder: Path, batch_tokens: int) -> None:
    """The scores are also equal if the token budget splits every tree."""
    solutions = beams(name)
    separate, shared = (scorer.score(solutions) for scorer in scorers(folder, batch_tokens=batch_tokens))
    assert [len(each.scores) for each in shared] == [len(solution.steps) for solution in solutions]
    flat = [score for each in separate for score in each.scores]
    assert [score for each in shared for score in each.scores] == pytest.approx(flat, abs=1e-5)
    assert max(flat) - min(flat) > 1e-3


def test_another_family(tmp_path: Path) -> None:
    """In rlhflow, scores are read before a placeholder, and each step has its own turn."""
    base = write_backbone("qwen2_5_vl", tmp_path / "base")
    solutions = [replace(each, problem=replace(each.problem, images=())) for each in beams("llama")]
    separate, shared = (scorer.score(solutions) for scorer in scorers(base, format="rlhflow"))
    for ours, theirs in zip(shared, separate, strict=True):
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)


def test_solutions_beyond_the_context_are_rejected(name: str, folder: Path) -> None:
    (solution,) = tiny_solutions(name, 1)
    long = replace(solution, steps=solution.steps * 100)
    refusing, cutting = scorers(folder)[1], scorers(folder, too_long="cut")
    with pytest.raises(DataError, match="the PRM reads at most"):
        refusing.score([solution, long])
    separate, shared = (scorer.score([solution, long]) for scorer in cutting)
    assert [len(each.scores) for each in shared] == [len(each.scores) for each in separate]
    assert shared[1].scores == pytest.approx(separate[1].scores, abs=1e-5)
    assert refusing.score([]) == cutting[1].score([]) == []


def test_chains_of_thought_of_300_steps_share_their_prefix(random_policy_folder: Path, tmp_path: Path) -> None:
    """Two chains that differ in their last 150 steps fit into the context, and half of their steps occur once."""
    save_prm(tmp_path / "prm", initialize_prm(str(random_policy_folder), PrmTokens()))
    rng = random.Random(0)
    first, second, third = ([str(rng.randrange(10)) for _ in range(150)] for _ in range(3))
    problem = make_problems(1, 0, "test")[0].problem
    chains = [Solution(problem, tuple(first + second)), Solution(problem, tuple(first + third))]
    separate, shared = (scorer.score(chains) for scorer in scorers(tmp_path / "prm"))
    for ours, theirs in zip(shared, separate, strict=True):
        assert len(ours.scores) == 300
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
    _, form = load_scoring_model(str(tmp_path / "prm"), read_info(tmp_path / "prm"), torch.float32)
    marks = Marks(form)
    (tree,) = pack_solutions(chains, marks.many(chains), 16384)
    tokens = [len(ids) for ids, _ in marks.many(chains)]
    assert max(tokens) < 1024
    assert sum(tokens) - len(tree.tokens) >= 300  # each of the 150 shared steps has a digit and a marker
