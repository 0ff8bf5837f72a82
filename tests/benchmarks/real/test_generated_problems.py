"""Test the generated problems of the real-model benchmark: splits, wordings, answers and solutions."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from benchmarks.real.problems import FORMS, SPLITS, make_problems, solution
from benchmarks.real.scenes import DISTRACTORS, SCENES
from benchmarks.real.search_wordings import SEARCH_WORDINGS
from benchmarks.real.truth import known_of, steps_true
from mmprm.grading.extract import extract
from mmprm.steps import plain_split
from mmprm.types import Problem

COUNT = 40


def as_problem(made) -> Problem:
    row = made.row()
    return Problem(row["id"], row["question"], row["answer"], extra=row)


@pytest.fixture(scope="module")
def problems():
    return {split: make_problems(split, COUNT) for split in SPLITS}


def test_the_seed_determines_the_problems(problems):
    assert make_problems("annotate", COUNT) == problems["annotate"]
    assert make_problems("annotate", COUNT, seed=1) != problems["annotate"]


def test_a_larger_set_starts_with_the_same_problems(problems):
    assert make_problems("dev", 10) == problems["dev"][:10]


def test_splits_share_no_problem_even_reworded(problems):
    calculations = {split: {made.steps for made in found} for split, found in problems.items()}
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not calculations[one] & calculations[other]


def test_other_wordings_tell_the_calculations_of_the_same_split():
    reworded, usual = make_problems("test", 10, wordings="search"), make_problems("annotate", 40)
    assert not {made.question for made in reworded} & {made.question for made in make_problems("test", 40)}
    assert not {made.steps for made in reworded} & {made.steps for made in usual}
    assert all(any(re.search(each, made.question) for each in search_wordings()) for made in reworded)


def patterns(texts: Iterable[str]) -> list[str]:
    return [re.sub(r"\\{\w+\\}", r"[\\w ]+", re.escape(text)) for text in texts]


def held_out_wordings() -> list[str]:
    scenes = SCENES.values()
    wordings = [w for scene in scenes for group in (scene.events, scene.endings) for w in group.values()]
    return patterns(text for each in (*wordings, DISTRACTORS) for text in each.held_out)


def search_wordings() -> list[str]:
    return patterns(text for kinds in SEARCH_WORDINGS.values() for texts in kinds.values() for text in texts)


@pytest.mark.parametrize(
    ("wordings", "users"), [(held_out_wordings, ("dev", "test")), (search_wordings, ("annotate", "rl"))]
)
def test_splits_for_other_purposes_have_their_own_wordings(problems, wordings, users):
    known = wordings()
    for split, found in problems.items():
        used = [any(re.search(pattern, made.question) for pattern in known) for made in found]
        assert all(used) if split in users else not any(used)


def test_a_problem_takes_two_to_five_operations(problems):
    sizes = {len(made.steps) for found in problems.values() for made in found}
    assert sizes == {2, 3, 4, 5}


def test_each_step_computes_its_result(problems):
    for made in problems["sft"]:
        for step in made.steps:
            assert eval(f"{step.left} {step.operation} {step.right}") == step.result


def test_the_question_states_its_numbers_and_distractors(problems):
    implied = {2, 12}
    for made in problems["test"]:
        stated = set(map(int, re.findall(r"\d+", made.question)))
        assert set(made.distractors) <= stated
        assert set(made.givens) - implied <= stated


@pytest.mark.parametrize("form", FORMS)
def test_every_step_of_a_generated_solution_is_true(problems, form):
    rng = random.Random(0)
    for made in problems["sft"] + problems["test"]:
        steps = plain_split(solution(made, form, rng), form).steps
        assert len(steps) == len(made.steps) + 1
        assert all(steps_true(steps, known_of(as_problem(made))))


@pytest.mark.parametrize("form", FORMS)
def test_the_grader_finds_the_answer_of_a_solution(problems, form):
    for made in problems["sft"]:
        assert extract(solution(made, form, random.Random(1))) == made.answer


def test_a_distractor_never_yields_a_legitimate_value(problems):
    for made in problems["annotate"]:
        for distractor in made.distractors:
            assert distractor not in made.values
            assert not {value + distractor for value in made.values} & set(made.values)
