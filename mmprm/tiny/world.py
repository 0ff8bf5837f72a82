"""Define the built-in toy world: images of colored digits, expressions over them, and the correctness of each step.

A question names colors and asks for an expression that is read strictly from left to right:

    Left to right: blue + red × green = ?

A solution reads each color once, in the order of the question, then does one operation per step:

    <step>blue=5</step><step>red=3</step><step>green=2</step><step>5+3=8</step><step>8×2=16</step><answer>16</answer>

In long questions, the colors repeat in the same order, and each operation of a solution names its color
(`<step>5+(red=3)=8</step>`). Otherwise, a model of this size would lose its place.

All results are in 1 … 99, and problems in which some misreading would not change the answer are discarded. With digits
from 1 to 9, each operation is injective in its left operand. Any single mistake that later steps propagate therefore
changes the answer.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mmprm.errors import DataError
from mmprm.problems import open_image
from mmprm.steps import plain
from mmprm.tiny.image import COLORS, COLUMNS, DIGITS, ROWS, SHIFTS, draw, read_cells
from mmprm.types import ImageRef, Problem, Steps

WorldSplit = Literal["train", "annotate", "dev", "test"]
SPLITS: dict[str, range] = {
    "train": range(0, 70),
    "annotate": range(70, 80),
    "dev": range(80, 85),
    "test": range(85, 100),
}
"""Maps each split to the range of content hashes (modulo 100) of its problems."""

OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "×": lambda a, b: a * b}
WorldLevel = Literal["short", "long"]
OPERATION_WEIGHTS: dict[str, dict[int, float]] = {
    "short": {1: 0.15, 2: 0.30, 3: 0.30, 4: 0.25},
    "long": dict.fromkeys(range(8, 15), 1.0),
}
"""Relative frequencies of the numbers of operations at each level."""
MAX_COLORS = 4
MIN_NAMED = min(OPERATION_WEIGHTS["long"])
"""Number of operations in a question from which on solutions name the color of each operation."""
RESULTS = range(1, 100)
HEAD = "Left to right: "
TAIL = " = ?"

LOOK_ALIKE = {1: 7, 2: 7, 3: 8, 4: 9, 5: 6, 6: 5, 7: 1, 8: 3, 9: 4}
HARD_DIGITS = {3, 5, 6, 8}
"""Digits that are often misread, because they differ from a look-alike by a single stroke."""

READING = re.compile(r"([a-z]+)=(\d)")
OPERATION = re.compile(r"(-?\d+)([+\-×])(\d|\([a-z]+=\d\))=(-?\d+)")
ANSWER = re.compile(r"<answer>(-?\d+)</answer>")


class Mistakes(NamedTuple):
    """Holds the probabilities of a mistake in easy and hard steps. A hard step reads a hard digit or needs a carry."""

    easy: float
    hard: float


NO_MISTAKES = Mistakes(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TinyProblem:
    """Holds a problem with its ground truth: the cells of the image, and the colors and operators in the question."""

    problem: Problem
    cells: tuple[tuple[str, int, tuple[int, int]], ...]
    operands: tuple[str, ...]
    operators: tuple[str, ...]

    @property
    def digits(self) -> dict[str, int]:
        return {color: digit for color, digit, _ in self.cells}

    def operand(self, color: str, digit: int | None) -> str:
        """Return how an operation of a solution writes the digit that it read for a color."""
        return f"({color}={digit})" if len(self.operators) >= MIN_NAMED else str(digit)


def make_problems(n: int, seed: int, split: WorldSplit, level: WorldLevel = "short") -> list[TinyProblem]:
    """Generate `n` distinct problems of a split. A hash of each problem determines its split, so the splits are
    disjoint for all seeds and levels."""
    if split not in SPLITS:
        raise DataError(f"split={split!r} must be one of {', '.join(SPLITS)}; set one of them")
    rng = random.Random(f"tiny/{seed}/{split}" if level == "short" else f"tiny/{seed}/{split}/{level}")
    found: dict[str, TinyProblem] = {}
    while len(found) < n:
        cells, operands, operators = _draw_content(rng, level)
        content = _hash(cells, operands, operators)
        if int(content, 16) % 100 in SPLITS[split] and content not in found:
            found[content] = _build(content, cells, operands, operators)
    return list(found.values())


def truth_of(problem: Problem) -> TinyProblem:
    """Reconstruct a problem's ground truth from its image and question alone, for example after reading the problem
    from a file."""
    words = problem.question.removeprefix(HEAD).removesuffix(TAIL).split(" ")
    operands, operators = tuple(words[::2]), tuple(words[1::2])
    known = set(operands) <= set(COLORS) and set(operators) <= set(OPERATORS) and len(operands) == len(operators) + 1
    if not known or len(problem.images) != 1:
        raise DataError(
            f"problem {problem.id}: {problem.question!r} is not a question of the tiny world; use problems that mmprm "
            "tiny problems wrote"
        )
    cells = read_cells(open_image(problem.images[0]), f"problem {problem.id}")
    if missing := set(operands) - {color for color, _, _ in cells}:
        raise DataError(
            f"problem {problem.id}: its image has no {', '.join(sorted(missing))} cell; pair the question with its own "
            "image"
        )
    return TinyProblem(problem, cells, operands, operators)


def judge_steps(tiny: TinyProblem, steps: Sequence[str]) -> list[bool]:
    """Return whether each step of a solution is correct. Steps may be given with or without their tags.

    A reading is true if the question names the color and the image shows that digit. The k-th operation is true if it
    is the k-th of the question, its operands are the solution's own values, and its arithmetic is correct. These values
    are the result so far and the reading of the operand's color, correct or not. The answer is true if it repeats the
    result of the last operation. A malformed or repeated step is false, and so is a step that needs a missing one. A
    solution has no error up to step i if the first i + 1 values are all true.
    """
    readings: dict[str, int] = {}
    results: list[int] = []
    truths = []
    for step in steps:
        text = plain(step, "tags")
        if match := READING.fullmatch(text):
            color, digit = match[1], int(match[2])
            truths.append(color in tiny.operands and color not in readings and tiny.digits[color] == digit)
            readings.setdefault(color, digit)
        elif match := OPERATION.fullmatch(text):
            done = len(results)
            left, operator, operand, result = int(match[1]), match[2], match[3], int(match[4])
            true = False
            if done < len(tiny.operators):
                color = tiny.operands[done + 1]
                before, right = results[-1] if results else readings.get(tiny.operands[0]), readings.get(color)
                true = (left, operator, operand) == (before, tiny.operators[done], tiny.operand(color, right))
                true = true and OPERATORS[operator](left, right) == result
            truths.append(true)
            results.append(result)
        else:
            match = ANSWER.fullmatch(text)
            complete = len(results) == len(tiny.operators)
            truths.append(bool(match) and complete and int(match[1]) == results[-1])
    return truths


def error_kind(step: str) -> Literal["reading", "arithmetic"]:
    """Return the kind of error that a step can contain: "reading" if it reads the image, otherwise "arithmetic"."""
    return "reading" if READING.fullmatch(plain(step, "tags")) else "arithmetic"


def solve(tiny: TinyProblem, rng: random.Random | None = None, mistakes: Mistakes = NO_MISTAKES) -> Steps:
    """Return a solution with random mistakes at the rates `mistakes`; later steps propagate them.

    A mistake at a hard step is always the same: the look-alike digit, or the forgotten carry. Incorrect answers of a
    problem therefore agree with each other, as those of real models do, and a vote does not simply outnumber them. At
    an easy step, a reading takes a look-alike digit or that of a neighboring cell, and a result is off by one or ten.
    Mistakes after which a result would leave 0 … 99 are sampled again.
    """
    rng = rng or random.Random(0)
    while True:
        readings = {color: tiny.digits[color] for color in dict.fromkeys(tiny.operands)}
        for color in readings:
            hard = tiny.digits[color] in HARD_DIGITS
            if rng.random() < (mistakes.hard if hard else mistakes.easy):
                readings[color] = LOOK_ALIKE[tiny.digits[color]] if hard else _misread(tiny, color, rng)
        value, results, lines = readings[tiny.operands[0]], [], []
        for operator, color in zip(tiny.operators, tiny.operands[1:], strict=True):
            result = OPERATORS[operator](value, readings[color])
            carry = _carry(value, operator, readings[color])
            if rng.random() < (mistakes.hard if carry else mistakes.easy):
                result -= carry or rng.choice((-10, -1, -1, 1, 1, 10))
            lines.append(f"{value}{operator}{tiny.operand(color, readings[color])}={result}")
            value = result
            results.append(result)
        if all(0 <= result < RESULTS.stop for result in results):
            break
    lines = [f"{color}={digit}" for color, digit in readings.items()] + lines
    return (*(f"<step>{line}</step>" for line in lines), f"<answer>{value}</answer>")


def _carry(left: int, operator: str, right: int) -> int:
    """Return the error made by forgetting a carry (negative for a borrow), or 0 if there is nothing to carry."""
    units = OPERATORS[operator](left % 10, right)
    return 10 * (units // 10) if operator != "×" or left >= 10 else 0


def _misread(tiny: TinyProblem, color: str, rng: random.Random) -> int:
    """Return a misread digit: a look-alike, or the digit of a neighboring cell."""
    position = next(position for position, cell in enumerate(tiny.cells) if cell[0] == color)
    row, column = divmod(position, COLUMNS)
    beside = [
        digit
        for other, (_, digit, _) in enumerate(tiny.cells)
        if abs(other // COLUMNS - row) + abs(other % COLUMNS - column) == 1 and digit != tiny.digits[color]
    ]
    look_alike = LOOK_ALIKE[tiny.digits[color]]
    return rng.choice([look_alike, rng.choice(beside or [look_alike])])


def _draw_content(rng: random.Random, level: WorldLevel) -> tuple:
    """Sample cells, operands and operators until they satisfy the rules in the module docstring."""
    weights = OPERATION_WEIGHTS[level]
    while True:
        colors = rng.sample(list(COLORS), ROWS * COLUMNS)
        cells = tuple((color, rng.choice(list(DIGITS)), rng.choice(SHIFTS)) for color in colors)
        (operations,) = rng.choices(list(weights), list(weights.values()))
        named = rng.sample(colors, min(operations + 1, MAX_COLORS))
        missing = operations + 1 - len(named)
        in_order = itertools.islice(itertools.cycle(named), missing)
        operands = [*named, *(in_order if level == "long" else rng.choices(named, k=missing))]
        digits = {color: digit for color, digit, _ in cells}
        draw_operators = _DRAW_OPERATORS[level]
        operators = draw_operators(rng, [digits[color] for color in operands])
        results = _results(digits, operands, operators)
        if all(result in RESULTS for result in results) and _every_reading_matters(digits, operands, operators):
            return cells, tuple(operands), tuple(operators)


def _any_operators(rng: random.Random, values: Sequence[int]) -> list[str]:
    return rng.choices(list(OPERATORS), k=len(values) - 1)


def _operators_in_range(rng: random.Random, values: Sequence[int]) -> list[str]:
    """Sample each operator from those that keep the result in range; long unrestricted sequences would almost always
    leave it.

    At least one operator is allowed for any value and digit in range, because v − d < 1 implies v + d ≤ 2·9.
    """
    result, operators = values[0], []
    for value in values[1:]:
        allowed = [name for name, operation in OPERATORS.items() if operation(result, value) in RESULTS]
        operators.append(rng.choice(allowed))
        result = OPERATORS[operators[-1]](result, value)
    return operators


_DRAW_OPERATORS = {"short": _any_operators, "long": _operators_in_range}


def _results(digits: dict[str, int], operands: Sequence[str], operators: Sequence[str]) -> list[int]:
    pairs = zip(operators, operands[1:], strict=True)
    steps = itertools.accumulate(
        pairs, lambda value, pair: OPERATORS[pair[0]](value, digits[pair[1]]), initial=digits[operands[0]]
    )
    return list(steps)[1:]


def _every_reading_matters(digits: dict[str, int], operands: Sequence[str], operators: Sequence[str]) -> bool:
    """Return whether every possible misreading of a color would change the answer."""
    answer = _results(digits, operands, operators)[-1]
    return not any(
        _results({**digits, color: other}, operands, operators)[-1] == answer
        for color in set(operands)
        for other in DIGITS
        if other != digits[color]
    )


def _hash(*content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _build(content: str, cells: tuple, operands: tuple[str, ...], operators: tuple[str, ...]) -> TinyProblem:
    words = [operands[0], *itertools.chain.from_iterable(zip(operators, operands[1:], strict=True))]
    digits = {color: digit for color, digit, _ in cells}
    problem = Problem(
        id=f"tiny-{content}",
        question=f"{HEAD}{' '.join(words)}{TAIL}",
        answer=str(_results(digits, operands, operators)[-1]),
        images=(ImageRef(data=draw(cells)),),
    )
    return TinyProblem(problem, cells, operands, operators)
