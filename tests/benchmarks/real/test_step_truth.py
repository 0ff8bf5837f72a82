"""Test how single steps of a generated problem are judged true or false."""

from __future__ import annotations

from fractions import Fraction

import pytest

from benchmarks.real.expressions import apply, legitimate_operations, legitimate_values, number, operation
from benchmarks.real.truth import Known, first_error, is_true


def known(values, givens, answer, distractors=(), operations=()) -> Known:
    sets = (frozenset(map(Fraction, each)) for each in (givens, distractors, values))
    return Known(Fraction(answer), *sets, frozenset(operations))


# 18 pens plus 4 boxes of 6, minus 10 given away; Omar's age, 31, is a distractor: 18 + 4 * 6 - 10 = 32.
PENS = apply(apply(number(18), "+", apply(number(4), "*", number(6))), "-", number(10))
KNOWN = known(legitimate_values(PENS), (18, 4, 6, 10), 32, (31,), legitimate_operations(PENS))

TRUE = (
    "4 * 6 = 24 pens.",
    "That is 4 × 6 = 24 pens.",
    "4 times 6 is 24.",
    "6 x 4 = 24",
    "There are 4 boxes * 6 pens = 24 pens.",
    "Adding 24 gives 18 + 24 = 42.",
    "18 + 4 * 6 = 42",
    "(4 * 6) + 18 = 42 pens",
    "18 - 10 = 8",
    "6 + 6 + 6 + 6 = 24 pens.",
    "18 - 10 + 24 = 32",
    "24 - 10 = 14 pens are left from the boxes.",
    "18 + 24 - 10 = 42 - 10 = 32",
    "4 * 6 = 24 and 18 + 24 = 42.",
    "She has 42 pens.",
    "Taking away 10 leaves 42 - 10 = 32 pens.",
    "Answer: 32",
    "<answer>32</answer>",
    "The answer is $32.00.",
)
FALSE = (
    "4 * 6 = 26 pens.",
    "18 + 4 = 22 pens.",
    "18 + 31 = 49.",
    "42 - 31 = 11 pens.",
    "42 + 10 = 52",
    "18 - 4 = 14 pens are left from the boxes.",
    "4 + 6 = 10",
    "4 + 4 + 6 + 18 = 32",
    "4 + 6 = 10 pens; 18 + 10 = 28.",
    "4 * 6 = 24 and 18 + 24 = 43.",
    "She has 43 pens.",
    "18 + 24 - 10 = 42 - 10 = 33",
    "Answer: 42",
)
UNDECIDED = (
    "First, count the pens in the boxes.",
    "Omar is 31 years old.",
    "20 + 22 = 42",
    "(18 + 24 = 42",
    "42 / 0 = 42",
)


@pytest.mark.parametrize("step", TRUE)
def test_true_steps(step):
    assert is_true(step, KNOWN) is True


@pytest.mark.parametrize("step", FALSE)
def test_false_steps(step):
    assert is_true(step, KNOWN) is False


@pytest.mark.parametrize("step", UNDECIDED)
def test_undecided_steps(step):
    assert is_true(step, KNOWN) is None


@pytest.mark.parametrize(
    ("step", "true"),
    [
        ("2 hours = 120 minutes", True),
        ("2 hours = 200 minutes", False),
        ("$1,200 + $50 = $1,250", True),
        ("3 dozen = 36 eggs", True),
        ("1250 dollars plus 0.5 dollars equals 1250.5", False),
    ],
)
def test_units_and_separators(step, true):
    facts = known((120, 36, 1250), (2, 3, 1200, 50), 120, operations=[operation("+", Fraction(1200), Fraction(50))])
    assert is_true(step, facts) is true


def test_the_first_false_step_is_the_first_error():
    assert first_error(("4 * 6 = 24", "18 + 24 = 40", "Answer: 30"), KNOWN) == 1
    assert first_error(("4 * 6 = 24", "Answer: 32"), KNOWN) is None


def test_partial_sums_and_products_are_legitimate():
    # (7 + 5) * 3 - 4 may also be computed from 7 * 3 and 5 * 3.
    expression = apply(apply(apply(number(7), "+", number(5)), "*", number(3)), "-", number(4))
    assert {12, 36, 32, 21, 15} <= legitimate_values(expression)
    assert not {8, 11, 10} & legitimate_values(expression)


def test_a_quotient_may_be_taken_term_by_term():
    # (12 + 6) / 3 = 12 / 3 + 6 / 3
    assert {18, 6, 4, 2} <= legitimate_values(apply(apply(number(12), "+", number(6)), "/", number(3)))


def operations_of(expression) -> set[str]:
    return {f"{left} {sign} {right}" for sign, left, right in legitimate_operations(expression)}


def test_operations_of_a_sum_combine_its_partial_sums():
    # 18 + 24 - 10
    assert operations_of(PENS) == {
        "4 * 6",
        *("18 + 24", "18 - 10", "24 - 10", "10 - 18", "10 - 24"),
        *("42 - 10", "10 - 42", "8 + 24", "14 + 18"),
    }


def test_two_subtracted_numbers_may_be_added_first():
    # 9 - 2 - 3: also 2 + 3 = 5 and 9 - 5
    found = operations_of(apply(apply(number(9), "-", number(2)), "-", number(3)))
    assert found == {"9 - 2", "2 - 9", "9 - 3", "3 - 9", "2 + 3", "7 - 3", "3 - 7", "6 - 2", "2 - 6", "9 - 5", "5 - 9"}


def test_operations_of_a_product_combine_its_partial_products():
    # 4 * 6 / 2: also 6 / 2 = 3 and 4 * 3
    found = operations_of(apply(apply(number(4), "*", number(6)), "/", number(2)))
    assert found == {"4 * 6", "6 / 2", "4 / 2", "24 / 2", "3 * 4", "2 * 6"}


def test_two_divisors_may_be_multiplied_first():
    found = operations_of(apply(apply(number(12), "/", number(2)), "/", number(3)))
    assert found == {"12 / 2", "12 / 3", "2 * 3", "12 / 6", "6 / 3", "4 / 2"}


def test_a_factor_may_be_distributed_over_a_sum():
    # (7 + 5) * 3 = 7 * 3 + 5 * 3
    found = operations_of(apply(apply(number(7), "+", number(5)), "*", number(3)))
    assert found == {"5 + 7", "3 * 12", "3 * 7", "3 * 5", "15 + 21"}
