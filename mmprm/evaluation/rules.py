"""Define the answer rules of published benchmarks: tolerances, rounding and closed labels.

A rule compares a gold answer with an extracted answer. It returns None if it does not apply to them, which leaves the
verdict to the symbolic grader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from mmprm.grading.evaluation import evaluate_expression, time_limit
from mmprm.grading.expressions import UnreadableError, parse
from mmprm.grading.labels import plain_words
from mmprm.grading.numbers import number
from mmprm.grading.operations import UndefinedError, Value
from mmprm.grading.quantities import split_unit
from mmprm.grading.symbolic import MAX_INLINE_SECONDS, Decision
from mmprm.grading.text import clean, is_prose
from mmprm.grading.units import NO_UNIT, Unit
from mmprm.grading.wording import core, denies, stated_values
from mmprm.types import Grader, Grading, Problem, Verdict

AnswerRule = Callable[[str, str], Decision | None]
"""Compares (gold, answer) and returns a (verdict, reason) pair, or None if the rule does not apply."""

MAX_ANSWER = 300
"""Maximum number of characters of an answer that a rule reads; the symbolic grader decides longer ones."""

_PERCENT = re.compile(r"\s*(?:\\?%|percent\b)")
_VALUE_BOUND = 10**30
_SLACK = Fraction(1, 10**12)
"""Fraction of the gold value that is added to its tolerance, because π and roots are evaluated in floating point."""


def within(*, relative: float = 0.0, absolute: float = 0.0, percent: bool = False) -> AnswerRule:
    """Accept numbers whose distance from the gold value g is at most max(relative · |g|, absolute).

    With `percent`, g / 100 and 100 · g are also gold values. Applies if both answers are numbers in the same unit.
    """
    tolerance = f"{relative:.0%} of" if relative else f"{absolute:g} of"

    def rule(gold: str, answer: str) -> Decision | None:
        values = _values(gold, answer)
        if values is None:
            return None
        golds = [values[0], values[0] / 100, values[0] * 100] if percent else [values[0]]
        near = any(abs(values[1] - each) <= _allowed(each, relative, absolute) for each in golds)
        return _decision(near, f"{tolerance} {gold}")

    return rule


def rounded(decimals: int) -> AnswerRule:
    """Accept numbers that equal the gold value after both are rounded to `decimals` places."""

    def rule(gold: str, answer: str) -> Decision | None:
        readings = _readings(gold, answer)
        equal = [round(value, decimals) == round(other, decimals) for value, other in readings]
        return _decision(any(equal), f"{gold}, to {decimals} decimals") if readings else None

    return rule


def truncated(gold: str, answer: str) -> Decision | None:
    """Accept numbers whose integer part, rounded toward zero, equals the gold integer."""
    readings = _readings(gold, answer)
    equal = [math.trunc(other) == value for value, other in readings]
    return _decision(any(equal), f"{gold}, truncated") if readings else None


def in_order(gold: str, answer: str) -> Decision | None:
    """Accept lists with the same numbers in the same order as the gold list, with any brackets or none."""
    one, other = _listed(gold), _listed(answer)
    return None if one is None or other is None else _decision(one == other, f"the list {gold}")


def each_within(errors: Sequence[float]) -> AnswerRule:
    """Accept lists with one number for each gold number, within its error, in any order.

    A single error applies to all gold numbers. Applies if both answers are lists of numbers, and the numbers of gold
    numbers and errors are equal.
    """

    def rule(gold: str, answer: str) -> Decision | None:
        golds, given = _listed(gold), _listed(answer)
        if golds is None or given is None or len(errors) not in (1, len(golds)):
            return None
        allowed = list(errors) * (len(golds) // len(errors))
        left = list(given)
        for value, error in zip(golds, allowed, strict=True):
            nearest = min(left, key=lambda other: abs(other - value), default=None)
            if nearest is not None and abs(nearest - value) <= _allowed(value, 0.0, error):
                left.remove(nearest)
        return _decision(not left and len(given) == len(golds), f"{gold}, each within its error")

    return rule


def last_side(gold: str, answer: str) -> Decision | None:
    """Accept equations whose last side is the gold number, such as m + n = 33; applies if that side is a number."""
    _, equals, side = answer.rpartition("=")
    values = _values(gold, side) if equals else None
    return None if values is None else _decision(values[0] == values[1], f"the last side {gold}")


def labeled(*labels: str) -> AnswerRule:
    """Accept answers whose words include the gold label and no other label; reject all other answers."""
    known = [label.casefold() for label in labels]

    def rule(gold: str, answer: str) -> Decision:
        words = set(re.findall(r"\w+", answer.casefold()))
        return _decision([label for label in known if label in words] == [gold.casefold()], f"the label {gold}")

    return rule


_YES_OR_NO = labeled("yes", "no")


def yes_or_no_label(gold: str, answer: str) -> Decision:
    """Accept answers that begin with the gold label and a punctuation mark, or contain it and not the other label; y
    and n are labels as well. Reject all other answers."""
    text = answer.strip().casefold()
    begins = re.match(r"\W*(yes|no)\s*[,.;:!–—]", text)
    return _YES_OR_NO(gold, begins[1] if begins else {"y": "yes", "n": "no"}.get(text, text))


def containing(gold: str, answer: str) -> Decision | None:
    """Accept answers that contain the words of the gold answer, ignoring case, and no negation.

    A gold answer of three or more letters may be the beginning of a word ("Sep" in "September"). Formulas are not
    compared.
    """
    wanted, given = plain_words(gold), plain_words(answer)
    is_word = is_prose(wanted) or re.fullmatch(r"[^\W\d_]{3,}", wanted)
    if len(answer) > MAX_ANSWER or not is_word or denies(given):
        return None
    end = r"(?!\w)" if len(wanted) < 3 else ""
    found = re.search(rf"(?<!\w){re.escape(wanted)}{end}", given)
    return _decision(True, f"contains {gold}") if found else None


def first_of(*rules: AnswerRule) -> AnswerRule:
    """Combine rules: the first one that applies decides."""

    def rule(gold: str, answer: str) -> Decision | None:
        return next((decision for each in rules if (decision := each(gold, answer)) is not None), None)

    return rule


async def grade_by_rule(
    problem: Problem, also: Sequence[str], rule: AnswerRule | None, response: str, symbolic: Grader
) -> Grading:
    """Grade a response against the problem's answer and the equally valid answers in `also`; the best verdict counts.

    The rule decides where it applies, and otherwise the symbolic grader.
    """
    best = await symbolic.grade(problem, response)
    if best.extracted is None:
        return best
    for gold in (problem.answer, *also):
        grading = best if gold == problem.answer else await symbolic.grade(_with_answer(problem, gold), response)
        decision = _applied(rule, gold, best.extracted) if rule is not None else None
        if decision is not None:
            grading = Grading(decision[0], best.extracted, decision[1])
        best = grading if gold == problem.answer else max(best, grading, key=_preference)
    return best


def _applied(rule: AnswerRule, gold: str, answer: str) -> Decision | None:
    try:
        with time_limit(MAX_INLINE_SECONDS):
            return rule(gold, answer)
    except Exception:  # such as TooLongError or RecursionError: an unusual answer must not stop the others
        return None


def value_of(text: str) -> tuple[Fraction, Unit] | None:
    r"""Return the (number, unit) that an answer states, such as 5 for "about 5 cm" or 6.28… for 2\pi, or None.

    A percentage is returned as a fraction of one.
    """
    line = core(" ".join(clean(part) for part in text[:MAX_ANSWER].splitlines()))[0]
    if is_prose(line) and len(set(stated_values(line))) == 1 and not denies(line):
        line = stated_values(line)[0]
    percent = re.fullmatch(r"(.*?)\s*(?:\\?%|percent)", line)
    body, unit = split_unit(percent[1] if percent else line)
    value = number(body)
    value = _evaluated(body) if value is None else value
    if value is None:
        return None
    return value / 100 if percent else value, unit


def _evaluated(text: str) -> Fraction | None:
    try:
        value: Value = evaluate_expression(parse(text), {})
        if isinstance(value, Fraction):
            return value
        real = value.imag == 0 and abs(value) < _VALUE_BOUND
        return Fraction(float(value.real)) if real else None
    except (UnreadableError, UndefinedError, ArithmeticError):
        return None


def _values(gold: str, answer: str) -> tuple[Fraction, Fraction] | None:
    """Return the values of both texts, or None if either is not a number or their units differ."""
    if len(answer) > MAX_ANSWER:
        return None
    one, other = value_of(gold), value_of(answer)
    if one is None or other is None:
        return None
    units = {unit for _, unit in (one, other) if unit != NO_UNIT}
    return (one[0], other[0]) if len(units) < 2 else None


def _readings(gold: str, answer: str) -> list[tuple[Fraction, Fraction]]:
    """Return the (gold, answer) values for each way to interpret a percent sign in the answer.

    If only the answer has a percent sign, the sign may be the unit that the question asks for: 50% is 0.5 or 50.
    """
    bare = answer if _PERCENT.search(gold) else _PERCENT.sub("", answer)
    return [values for text in dict.fromkeys((answer, bare)) if (values := _values(gold, text)) is not None]


def _listed(text: str) -> list[Fraction] | None:
    """Return the values of a list of at least two numbers, or None for other texts."""
    if len(text) > MAX_ANSWER:
        return None
    values = [value_of(part) for part in re.split(r",|\band\b", clean(text).strip(" $()[]{}\\"))]
    return [value for value, _ in values] if len(values) > 1 and None not in values else None


def _allowed(gold: Fraction, relative: float, absolute: float) -> Fraction:
    # str keeps 0.05 at 1/20; the float itself is slightly larger.
    allowed = max(Fraction(str(relative)) * abs(gold), Fraction(str(absolute)))
    return allowed + _SLACK * abs(gold)


def _decision(accepted: bool, rule: str) -> Decision:
    return (Verdict.CORRECT, f"rule: {rule}") if accepted else (Verdict.INCORRECT, f"rule: not {rule}")


def _with_answer(problem: Problem, answer: str) -> Problem:
    return Problem(problem.id, problem.question, answer, problem.images, problem.choices)


def _preference(grading: Grading) -> int:
    return (Verdict.INCORRECT, Verdict.UNKNOWN, Verdict.CORRECT).index(grading.verdict)
