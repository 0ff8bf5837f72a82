"""Test the world of clips with sound: truths, splits, steps, and that an answer needs both the frames and the tone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from mmprm.cli.main import main
from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, load_problems, write_problems
from mmprm.tiny.omni_words import CLIP_MOVES, CLIP_TONES, EMOTIONS
from mmprm.tiny.omni_world import (
    OmniProblem,
    best_accuracy,
    clip_truth,
    emotion_of,
    judge_clip_steps,
    make_omni_problems,
    solution_of,
    solve_clip,
)
from mmprm.tiny.world import Mistakes
from mmprm.types import Problem

PROBLEMS = make_omni_problems(24, seed=0, split="train")


def test_the_truth_is_in_the_clip_alone(tmp_path: Path) -> None:
    write_problems(tmp_path / "p.jsonl", [each.problem for each in PROBLEMS])
    again = load_problems(ProblemsConfig(path=str(tmp_path / "p.jsonl")))
    for made, read in zip(PROBLEMS, again, strict=True):
        truth = clip_truth(read)
        assert (truth.move, truth.tone) == (made.move, made.tone)
        assert read.answer == emotion_of(made.move, made.tone)
    assert {each.move for each in PROBLEMS} == set(CLIP_MOVES)
    assert {each.tone for each in PROBLEMS} == set(CLIP_TONES)


def test_the_answer_needs_both_modalities() -> None:
    assert best_accuracy(move=True, tone=True) == 1.0
    assert best_accuracy(move=True, tone=False) == pytest.approx(1 / 3)
    assert best_accuracy(move=False, tone=True) == pytest.approx(1 / 4)
    assert Counter(emotion_of(move, tone) for move in CLIP_MOVES for tone in CLIP_TONES) == dict.fromkeys(EMOTIONS, 3)


def test_equal_seeds_give_equal_clips_and_splits_are_disjoint() -> None:
    assert [each.problem for each in make_omni_problems(3, 0, "train")] == [each.problem for each in PROBLEMS[:3]]
    test = {each.problem.id for each in make_omni_problems(5, 0, "test")}
    assert test.isdisjoint(each.problem.id for each in PROBLEMS)
    with pytest.raises(DataError, match=r"split='x' must be one of train, annotate, dev, test"):
        make_omni_problems(1, 0, "x")  # type: ignore[arg-type]


def test_the_command_writes_clips_with_solutions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tiny", "omni", "--output", str(tmp_path), "--count", "3", "--split", "dev", "--solutions"])
    assert "3 clips of the dev split written to" in capsys.readouterr().out
    for problem in load_problems(ProblemsConfig(path=str(tmp_path / "clips.jsonl"))):
        truth = clip_truth(problem)
        assert problem.solution == "".join(solution_of(truth.move, truth.tone))


UP_HIGH = OmniProblem(Problem("p", "", "fear"), "up", "high")


@pytest.mark.parametrize(
    ("steps", "truths"),
    [
        (solution_of("up", "high"), [True, True, True]),
        (solution_of("down", "high"), [False, True, True]),
        (solution_of("up", "low"), [True, False, True]),
        (("<step>move=up</step>", "<step>tone=high</step>", "<answer>joy</answer>"), [True, True, False]),
        (("<step>move=up</step>", "<step>move=up</step>"), [True, False]),
        (("<step>move=up</step>", "<answer>fear</answer>"), [True, False]),
        (("move=up", "tone=high"), [True, True]),
        (("<step>move=sideways</step>", "<step>tone=high</step>", "<answer>joy</answer>"), [False, True, False]),
    ],
)
def test_each_step_is_judged_by_the_clip_and_the_steps_before(steps: tuple[str, ...], truths: list[bool]) -> None:
    assert judge_clip_steps(UP_HIGH, steps) == truths


def test_mistakes_have_their_rates_and_middle_tones_are_mistaken_for_high_ones() -> None:
    rng, mistakes = random.Random(0), Mistakes(easy=0.1, hard=0.6)
    middle = OmniProblem(Problem("p", "", ""), "up", "middle")
    heard = Counter(solve_clip(middle, rng, mistakes)[1] for _ in range(2000))
    assert set(heard) == {"<step>tone=middle</step>", "<step>tone=high</step>"}
    assert heard["<step>tone=high</step>"] / 2000 == pytest.approx(0.6, abs=0.03)
    wrong = sum("up" not in solve_clip(UP_HIGH, rng, mistakes)[0] for _ in range(2000))
    assert wrong / 2000 == pytest.approx(0.1, abs=0.02)
    assert solve_clip(UP_HIGH, rng) == solution_of("up", "high")
