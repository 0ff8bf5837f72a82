from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmprm.errors import CheckpointError, DataError
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm, load_prm, save_prm
from mmprm.scoring import transformers_scorer
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.context import TooLong, fitting
from mmprm.scoring.open import open_scorer
from mmprm.scoring.vllm_scorer import IMAGES, VllmScorer
from mmprm.tiny.model import build_model
from mmprm.tiny.tokenizer import build_processor, build_tokenizer
from mmprm.tiny.world import make_problems, solve
from mmprm.types import ImageRef, Problem, Solution


@pytest.fixture(scope="module")
def prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a PRM with enlarged random weights, so that its scores differ."""
    folder = tmp_path_factory.mktemp("prm")
    torch.manual_seed(0)
    model = build_model(build_tokenizer())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    model.save_pretrained(folder / "base")
    build_processor().save_pretrained(folder / "base")
    save_prm(folder / "prm", initialize_prm(str(folder / "base"), PrmTokens(), add_missing_tokens=True))
    return folder / "prm"


@pytest.fixture(scope="module")
def solutions() -> list[Solution]:
    """Return solutions of different lengths with different numbers of images."""
    with_image = [Solution(tiny.problem, tuple(solve(tiny))) for tiny in make_problems(5, 0, "train")]
    bare = Solution(Problem("bare", "what is one plus one?", "2"), ("1+1=2",))
    return [with_image[0], bare, *with_image[1:], Solution(bare.problem, ("1+1=3", "so", "2"))]


def test_scores_are_the_softmax_at_each_marker_whatever_the_batch(prm: Path, solutions: list[Solution]) -> None:
    loaded = load_prm(prm)
    expected = []
    for solution in solutions:
        with torch.inference_mode():
            inputs = loaded.renderer.encode([solution])
            logits_BTV = loaded.model.backbone(**inputs).logits
        at_markers_M = inputs["input_ids"] == loaded.renderer.marker_id
        yes_no_M2 = logits_BTV[at_markers_M][:, [loaded.renderer.yes_id, loaded.renderer.no_id]]
        expected.append(tuple(yes_no_M2.softmax(dim=-1)[:, 0].tolist()))
    assert max(map(max, expected)) - min(map(min, expected)) > 0.1

    for batch_tokens in (1, 300, 16384):
        scorer = open_scorer(ScorerConfig(prm=str(prm), batch_tokens=batch_tokens))
        scores = scorer.score(solutions)
        scorer.close()
        for got, wanted in zip(scores, expected, strict=True):
            assert got.scores == pytest.approx(wanted, abs=1e-5)


def test_batches_keep_to_their_token_budget(prm: Path, solutions: list[Solution]) -> None:
    scorer = transformers_scorer.TransformersScorer(ScorerConfig(prm=str(prm), batch_tokens=300))
    batches = list(scorer._batches(solutions))
    assert sorted(index for indices, *_ in batches for index in indices) == list(range(len(solutions)))
    assert all(inputs["input_ids"].numel() <= 300 for _, inputs, _ in batches)
    assert any(len(indices) > 1 for indices, *_ in batches)
    assert scorer.score([]) == []


def test_solutions_that_cannot_be_scored_are_named(prm: Path, solutions: list[Solution], tmp_path: Path) -> None:
    scorer = open_scorer(ScorerConfig(prm=str(prm)))
    long = Solution(Problem("long", "q", "1"), ("a",) * 600)
    with pytest.raises(
        DataError, match=r"problem long: a solution of 600 steps has \d+ tokens, but the PRM reads at most"
    ):
        scorer.score([solutions[0], long])
    with pytest.raises(DataError, match="problem long"):
        scorer.score([Solution(long.problem, ())])
    with pytest.raises(CheckpointError, match=r"prm\.json"):
        open_scorer(ScorerConfig(prm=str(tmp_path)))


def test_truncation_by_hand() -> None:
    """The question has 10 tokens and the steps 3, 4 and 5: limits of 19 and 17 keep two steps, 16 keeps one."""
    sizes = {"a": 3, "b": 4, "c": 5}
    asked: list[int] = []

    def tokens(solution: Solution) -> int:
        asked.append(len(solution.steps))
        return 10 + sum(sizes[step] for step in solution.steps)

    whole = Solution(Problem("p", "q", "1", (ImageRef(path="x.png"),)), ("a", "b", "c"))
    assert fitting(whole, tokens, 22, "refuse") is whole
    for limit, kept in ((21, "ab"), (19, "ab"), (17, "ab"), (16, "a"), (13, "a")):
        assert fitting(whole, tokens, limit, "cut") == Solution(whole.problem, tuple(kept))
    with pytest.raises(DataError, match="problem p: its question with the first step exceeds the 12 tokens"):
        fitting(whole, tokens, 12, "cut")
    with pytest.raises(DataError, match=r"3 steps has 22 tokens, but the PRM reads at most 21; .*scorer\.too_long=cut"):
        fitting(whole, tokens, 21, "refuse")
    asked.clear()
    assert len(fitting(Solution(whole.problem, ("a",) * 10_000), tokens, 3000, "cut").steps) == 996
    assert len(asked) < 20


@pytest.mark.parametrize("too_long", ["refuse", "cut"])
def test_an_episode_first_loses_the_observation_after_its_last_turn(too_long: TooLong) -> None:
    """It costs no score; with 5 tokens, only "cut" can go on."""

    def tokens(solution: Solution) -> int:
        return 2 * len(solution.steps) + len(solution.observations)

    episode = Solution(Problem("p", "q", ""), ("a", "b"), (("1",), ("2",), ("3",)))
    assert fitting(episode, tokens, 7, too_long) is episode
    assert fitting(episode, tokens, 6, too_long) == replace(episode, observations=(("1",), ("2",)))
    if too_long == "cut":
        assert fitting(episode, tokens, 5, too_long) == episode.first_steps(1)


def test_a_truncated_solution_keeps_the_scores_of_its_first_steps(prm: Path, solutions: list[Solution]) -> None:
    """Truncated solutions are scored in a batch, and images are never truncated."""
    with_image = solutions[0]
    long = Solution(with_image.problem, tuple(with_image.steps[0] for _ in range(600)))
    scorer = open_scorer(ScorerConfig(prm=str(prm), too_long="cut"))
    first, cut, last = scorer.score([solutions[1], long, solutions[2]])
    kept = len(cut.scores)
    assert 2 <= kept < 600
    assert scorer._format.length(Solution(long.problem, long.steps[:kept])) <= scorer._context
    assert scorer._format.length(Solution(long.problem, long.steps[: kept + 1])) > scorer._context
    (alone,) = scorer.score([Solution(long.problem, long.steps[:kept])])
    assert cut.scores == pytest.approx(alone.scores, abs=1e-5)
    assert (len(first.scores), len(last.scores)) == (len(solutions[1].steps), len(solutions[2].steps))


def test_vllm_refuses_an_episode_with_more_images_than_it_reads() -> None:
    scorer = object.__new__(VllmScorer)  # nothing is read before the images are counted
    seen = ((ImageRef(path="frame.png"),),) * (IMAGES + 1)
    episode = Solution(Problem("p", "?", ""), ("<action>up</action>",) * len(seen), seen)
    (answer,) = scorer.score_each([episode])
    assert isinstance(answer, DataError)
    assert f"has {IMAGES + 1} images, but scorer.backend=vllm reads at most {IMAGES}" in str(answer)
