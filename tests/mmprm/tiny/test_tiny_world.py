"""Test the built-in toy world: its truth on hand-made cases, and its invariants over many problems."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmprm.errors import DataError
from mmprm.problems import ProblemsConfig, load_problems, open_image, write_problems
from mmprm.steps import split
from mmprm.tiny.image import draw, read_cells
from mmprm.tiny.world import (
    HARD_DIGITS,
    LOOK_ALIKE,
    OPERATORS,
    SPLITS,
    Mistakes,
    TinyProblem,
    error_kind,
    judge_steps,
    make_problems,
    solve,
    truth_of,
)
from mmprm.types import ImageRef, Problem

COLORS = ("blue", "red", "green", "white", "cyan", "orange")
CELLS = tuple((color, digit, (0, 2)) for color, digit in zip(COLORS, (5, 3, 2, 7, 9, 1), strict=True))
TINY = TinyProblem(
    Problem("t", "Left to right: blue + red × green = ?", "16", (ImageRef(data=draw(CELLS)),)),
    CELLS,
    ("blue", "red", "green"),
    ("+", "×"),
)


def judge(*steps: str) -> str:
    return "".join("+" if true else "-" for true in judge_steps(TINY, steps))


def test_solution_by_hand() -> None:
    assert "".join(solve(TINY)) == (
        "<step>blue=5</step><step>red=3</step><step>green=2</step>"
        "<step>5+3=8</step><step>8×2=16</step><answer>16</answer>"
    )
    assert judge_steps(TINY, solve(TINY)) == [True] * 6


@pytest.mark.parametrize(
    ("steps", "truths"),
    [
        (("blue=5", "red=8", "green=2", "5+8=13", "13×2=26", "<answer>26</answer>"), "+-++++"),
        (("blue=5", "red=3", "green=2", "5+3=9", "9×2=18", "<answer>18</answer>"), "+++-++"),
        (("blue=5", "red=3", "green=2", "5+3=8", "8×2=16", "<answer>61</answer>"), "+++++-"),
        (("blue=5", "red=3", "green=2", "5+2=7"), "+++-"),
        (("blue=5", "red=3", "green=2", "5×3=15"), "+++-"),
        (("blue=5", "red=3", "green=2", "5+3=8", "<answer>8</answer>"), "++++-"),
        (("blue=5", "5+3=8"), "+-"),
        (("blue=5", "blue=5"), "+-"),
        (("white=7",), "-"),
        (("blue 5", "mauve=5", "", "<answer>x</answer>"), "----"),
    ],
    ids=[
        "misread",
        "miscalculated",
        "misreported",
        "operand",
        "operator",
        "early",
        "unread",
        "repeated",
        "unasked",
        "malformed",
    ],
)
def test_judged_by_hand(steps: tuple[str, ...], truths: str) -> None:
    assert judge(*steps) == truths
    tagged = [step if step.startswith("<answer>") else f"<step>{step}</step>" for step in steps]
    assert judge(*tagged) == truths


def test_kind_of_an_incorrect_step() -> None:
    assert error_kind("<step>red=8</step>") == "reading"
    assert {error_kind(step) for step in ("<step>5+3=9</step>", "<answer>9</answer>", "???")} == {"arithmetic"}


def test_problems_follow_the_rules() -> None:
    problems = make_problems(300, 0, "test")
    for tiny in problems:
        value = tiny.digits[tiny.operands[0]]
        for operator, color in zip(tiny.operators, tiny.operands[1:], strict=True):
            value = OPERATORS[operator](value, tiny.digits[color])
            assert 1 <= value <= 99
        assert tiny.problem.answer == str(value)
        assert 2 <= len(set(tiny.operands)) <= 4
        assert 1 <= len(tiny.operators) <= 4
    assert {len(tiny.operators) for tiny in problems} == {1, 2, 3, 4}


def test_long_problems_follow_the_rules() -> None:
    problems = make_problems(100, 0, "test", "long")
    for tiny in problems:
        steps = solve(tiny)
        values = [int(step.removesuffix("</step>").rpartition("=")[2]) for step in steps[:-1] if "<step>" in step]
        assert all(1 <= value <= 99 for value in values)
        assert judge_steps(tiny, steps) == [True] * (len(set(tiny.operands)) + len(tiny.operators) + 1)
        assert truth_of(tiny.problem).operators == tiny.operators
        first, (color, *_) = len(set(tiny.operands)), tiny.operands[1:]
        named = f"({color}={tiny.digits[color]})"
        assert named in steps[first]
        for wrong in (str(tiny.digits[color]), named.replace(color, tiny.operands[0]), named[:-1]):
            assert not judge_steps(tiny, [*steps[:first], steps[first].replace(named, wrong)])[-1]
    assert {len(tiny.operators) for tiny in problems} == set(range(8, 15))
    assert {operator for tiny in problems for operator in tiny.operators} == set(OPERATORS)
    assert make_problems(5, 0, "test", "long") == problems[:5]


def test_a_long_problem_that_is_misread_has_another_answer() -> None:
    for tiny in make_problems(30, 1, "train", "long"):
        for color in set(tiny.operands):
            for digit in {*range(1, 10)} - {tiny.digits[color]}:
                digits = tiny.digits | {color: digit}
                value = digits[tiny.operands[0]]
                for operator, operand in zip(tiny.operators, tiny.operands[1:], strict=True):
                    value = OPERATORS[operator](value, digits[operand])
                assert str(value) != tiny.problem.answer


def test_splits_are_disjoint_and_seeds_repeat() -> None:
    ids = {name: {tiny.problem.id for tiny in make_problems(200, 3, name)} for name in SPLITS}
    assert all(len(found) == 200 for found in ids.values())
    assert len(set.union(*ids.values())) == 200 * len(SPLITS)
    assert make_problems(5, 3, "dev") == make_problems(5, 3, "dev")
    assert make_problems(5, 3, "dev") != make_problems(5, 4, "dev")
    with pytest.raises(DataError, match="train, annotate, dev, test"):
        make_problems(1, 0, "validation")


def test_a_mistake_is_carried_on_and_spoils_the_answer() -> None:
    rng = random.Random(0)
    spoiled = 0
    for tiny in make_problems(200, 1, "dev"):
        steps = solve(tiny, rng, Mistakes(0.15, 0.15))
        truths = judge_steps(tiny, steps)
        assert truths[-1], "the answer repeats the last result"
        assert split("".join(steps), "tags").steps == steps
        if sum(not true for true in truths) == 1:
            spoiled += 1
            assert steps[-1] != f"<answer>{tiny.problem.answer}</answer>"
    assert spoiled > 50


def test_mistakes_of_hard_steps_are_systematic() -> None:
    """3 is misread as 8 and 7 + 8 loses its carry, so a problem has only a few different incorrect answers."""
    rng = random.Random(0)
    for tiny in make_problems(50, 3, "train"):
        steps = [step for _ in range(40) for step in solve(tiny, rng, Mistakes(0.0, 0.5))]
        for color, digit in tiny.digits.items():
            read = {step for step in steps if step.startswith(f"<step>{color}=")}
            possible = {digit, LOOK_ALIKE[digit]} if digit in HARD_DIGITS else {digit}
            assert read <= {f"<step>{color}={shown}</step>" for shown in possible}
        sums = {step for step in steps if step.startswith("<step>7+8=")}
        assert sums <= {"<step>7+8=15</step>", "<step>7+8=5</step>"}


def test_mistakes_come_at_their_rate_and_in_both_kinds() -> None:
    rng = random.Random(0)
    kinds = {"reading": [], "arithmetic": []}
    for tiny in make_problems(1000, 2, "train"):
        steps = solve(tiny, rng, Mistakes(0.1, 0.1))[:-1]
        for step, true in zip(steps, judge_steps(tiny, steps), strict=True):
            kinds[error_kind(step)].append(not true)
    # Slightly below the rate, because mistakes outside the range of results are sampled again.
    assert all(0.06 < sum(incorrect) / len(incorrect) < 0.12 for incorrect in kinds.values())


def test_the_truth_survives_the_problem_file(tmp_path) -> None:
    made = make_problems(20, 0, "annotate")
    write_problems(tmp_path / "problems.jsonl", [tiny.problem for tiny in made])
    for tiny, problem in zip(made, load_problems(ProblemsConfig(path=str(tmp_path / "problems.jsonl"))), strict=True):
        found = truth_of(problem)
        assert (found.cells, found.operands, found.operators) == (tiny.cells, tiny.operands, tiny.operators)
        assert (problem.id, problem.question, problem.answer) == (
            tiny.problem.id,
            tiny.problem.question,
            found.problem.answer,
        )


def test_problems_from_elsewhere_are_rejected() -> None:
    with pytest.raises(DataError, match="'What is this\\?' is not a question"):
        truth_of(replace(TINY.problem, question="What is this?"))
    with pytest.raises(DataError, match="no purple cell"):
        truth_of(replace(TINY.problem, question="Left to right: blue + purple = ?"))
    image = open_image(TINY.problem.images[0])
    assert read_cells(image, "p") == CELLS
    image.putpixel((30, 1), (0, 0, 0))
    with pytest.raises(DataError, match="p: the cell in row 1, column 2"):
        read_cells(image, "p")
    with pytest.raises(DataError, match="10×10 pixels"):
        read_cells(image.crop((0, 0, 10, 10)), "p")
