"""Decide whether a step of a generated problem is true, from the numbers and operations of correct solutions.

An equation is true if its sides are equal and each of its operations occurs in a correct solution. Other steps are
judged by the numbers that they state. None means undecided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from benchmarks.real.expressions import Operation, operation
from mmprm.types import Problem, Steps

_NUMBER = r"\$?\d[\d,]*(?:\.\d+)?"
_UNIT = r"(?:\s*(?!(?:plus|minus|times|multiplied|divided|equals|is|makes|gives|leaves|are|and|so|x)\b)[a-zA-Z]+){0,3}"
_OPERATION = r"(?:\+|-|−|–|\*|×|·|/|÷|x\b|plus\b|minus\b|times\b|multiplied by\b|divided by\b)"
_EQUALS = r"(?:=|equals\b|is\b|makes\b|gives\b|leaves\b|are\b)"
_OPERAND = rf"\(*\s*{_NUMBER}(?:\s*\))*"
_REST = rf"(?:{_UNIT}\s*{_OPERATION}\s*{_OPERAND})"
_SIDE = rf"{_OPERAND}{_REST}*"
# After a number alone, only "=" makes an equation: `Adding 5 gives 12 + 5 = 17` states one about 12 + 5.
_EQUATION = re.compile(
    rf"(?<![\d.,$])((?:{_OPERAND}{_REST}+(?:{_UNIT}\s*{_EQUALS}\s*{_SIDE})|{_OPERAND}{_UNIT}\s*=\s*{_SIDE})"
    rf"(?:{_UNIT}\s*{_EQUALS}\s*{_SIDE})*{_UNIT})",
    re.IGNORECASE,
)
_TOKEN = re.compile(rf"({_NUMBER})|({_OPERATION})|([()])", re.IGNORECASE)
_SIGNS = {"plus": "+", "minus": "-", "−": "-", "–": "-", "times": "*", "multiplied by": "*", "×": "*", "·": "*"}
_SIGNS |= {"x": "*", "divided by": "/", "÷": "/"}
_ANSWER = re.compile(r"(?:answer\s*(?:is|:)?|<answer>|####)\s*\**\s*(-?\s*" + _NUMBER + ")", re.IGNORECASE)
_UNIT_SIZES = {"dozen": 12, "hour": 60, "minute": 1, "dollar": 100, "cent": 1, "week": 7, "day": 1}
"""Sizes of units, for equations without an operation, such as `2 hours = 120 minutes`."""


@dataclass(frozen=True)
class Known:
    """Lists the facts for judging steps: a problem's numbers, and the values and operations of correct solutions."""

    answer: Fraction
    givens: frozenset[Fraction]
    distractors: frozenset[Fraction]
    values: frozenset[Fraction]
    operations: frozenset[Operation]


def known_of(problem: Problem) -> Known:
    """Read the facts about a generated problem from its extra columns."""

    def numbers(name: str) -> frozenset[Fraction]:
        return frozenset(map(Fraction, problem.extra[name].split()))

    operations = frozenset(map(_operation, problem.extra["legitimate_operations"].split()))
    return Known(
        Fraction(problem.answer), numbers("givens"), numbers("distractors"), numbers("legitimate_values"), operations
    )


def is_true(step: str, known: Known) -> bool | None:
    """Return whether a plain step is true, or None if it cannot be decided."""
    answer = _ANSWER.search(step)
    if answer:
        return _fraction(answer[1]) == known.answer
    equations = [match[1] for match in _EQUATION.finditer(step)]
    if equations:
        return _all(_equation(each, known) for each in equations)
    return _statement([_fraction(text) for text in re.findall(_NUMBER, step)], known)


def steps_true(steps: Sequence[str], known: Known) -> list[bool | None]:
    """Return, for each plain step, whether it is true, or None if undecided."""
    return [is_true(step, known) for step in steps]


def first_error(steps: Steps, known: Known) -> int | None:
    """Return the index of the first false step, or None if there is none."""
    return next((index for index, true in enumerate(steps_true(steps, known)) if true is False), None)


def _equation(equation: str, known: Known) -> bool | None:
    sides = re.split(rf"\s*{_EQUALS}\s*", equation, flags=re.IGNORECASE)
    if not re.search(_OPERATION, equation, re.IGNORECASE):
        return _conversion(sides, known)
    evaluated = [_evaluate(side) for side in sides]
    if None in evaluated:
        return None
    if len({value for value, _ in evaluated}) > 1 or evaluated[-1][0] not in known.values:
        return False
    return _all(_is_legitimate(performed, known) for _, performed in evaluated)


def _is_legitimate(performed: Sequence[Operation], known: Known) -> bool | None:
    """Return whether correct solutions perform all these operations, or None if numbers of other origin occur.

    A legitimate result from other numbers may be another way to compute it, such as 20 + 22 for 18 + 24.
    """
    if not performed:
        return True
    if all(each in known.operations for each in performed) or _as_product(performed) in known.operations:
        return True
    numbers = {number for _, left, right in performed for number in (left, right)}
    return False if numbers <= known.givens | known.values else None


def _as_product(performed: Sequence[Operation]) -> Operation | None:
    """Return the multiplication that the operations spell as repeated addition, such as 3 * 6 for 6 + 6 + 6."""
    addend = performed[0][1]
    for count, each in enumerate(performed, 1):
        if each != operation("+", addend, addend * count):
            return None
    return operation("*", addend, Fraction(len(performed) + 1))


def _conversion(sides: Sequence[str], known: Known) -> bool | None:
    """Judge an equation between two quantities, such as `3 dozen = 36`."""
    amounts = [_amount(side) for side in sides]
    if len({number * size for number, size in amounts}) > 1:
        return False
    return True if amounts[-1][0] in known.values | known.givens else None


def _amount(side: str) -> tuple[Fraction, int]:
    words = [word.lower().rstrip("s") for word in re.findall(r"[a-zA-Z]+", side)]
    size = next((_UNIT_SIZES[word] for word in words if word in _UNIT_SIZES), 100 if "$" in side else 1)
    return _fraction(re.search(_NUMBER, side)[0]), size


def _statement(numbers: Sequence[Fraction], known: Known) -> bool | None:
    """Judge a step without an equation: restated or computed numbers are true, unknown ones false."""
    if not numbers:
        return None
    if any(number in known.distractors and number not in known.values for number in numbers):
        return None
    return all(number in known.givens | known.values for number in numbers)


def _all(judged: Iterable[bool | None]) -> bool | None:
    found = list(judged)
    return False if False in found else None if None in found else True


def _fraction(text: str) -> Fraction:
    return Fraction(re.sub(r"[$,\s]", "", text))


def _operation(text: str) -> Operation:
    """Parse an operation such as +:18:24."""
    sign, left, right = text.split(":")
    return operation(sign, Fraction(left), Fraction(right))


def _evaluate(side: str) -> tuple[Fraction, list[Operation]] | None:
    """Return the value and operations of one side of an equation; None if it is malformed or divides by zero."""
    tokens = [match[1] or match[2] or match[3] for match in _TOKEN.finditer(side)]
    tokens = [_SIGNS.get(token.lower(), token) for token in tokens]
    performed: list[Operation] = []
    try:
        value, rest = _sum(tokens, performed)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if rest else (value, performed)


def _sum(tokens: list[str], performed: list[Operation]) -> tuple[Fraction, list[str]]:
    value, rest = _product(tokens, performed)
    while rest and rest[0] in "+-":
        sign = rest[0]
        right, rest = _product(rest[1:], performed)
        performed.append(operation(sign, value, right))
        value = value + right if sign == "+" else value - right
    return value, rest


def _product(tokens: list[str], performed: list[Operation]) -> tuple[Fraction, list[str]]:
    value, rest = _atom(tokens, performed)
    while rest and rest[0] in "*/":
        sign = rest[0]
        right, rest = _atom(rest[1:], performed)
        performed.append(operation(sign, value, right))
        value = value * right if sign == "*" else value / right
    return value, rest


def _atom(tokens: list[str], performed: list[Operation]) -> tuple[Fraction, list[str]]:
    if tokens[0] != "(":
        return _fraction(tokens[0]), tokens[1:]
    value, rest = _sum(tokens[1:], performed)
    if rest[0] != ")":
        raise ValueError("unclosed parenthesis")
    return value, rest[1:]
